# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Turn the original CamVid (701 frames, 32 colors) into the eleven classes that papers report.

Input: two folders of the official release, the frames `<name>.png` and the colored labels
`<name>_L.png` (http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/). They may be the same
folder.

Output, for the data set `mmaselect.CamVidDataset`:

    OUT/images/{train,val,test}/<name>.png          367, 101 and 233 frames
    OUT/annotations/{train,val,test}/<name>.png     0..10 = the classes, 255 = ignore

    python tools/dataset_converters/camvid.py 701_StillsRaw_full LabeledApproved_full --size 480x360
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmaselect.fetch.camvid import convert_camvid
from mmaselect.terminal.tool import make_tool_parser, run_tool


def parse_size(text: str) -> tuple[int, int]:
    """Read ``WIDTHxHEIGHT``."""
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a WIDTHxHEIGHT, such as 480x360')
    return int(width), int(height)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the conversion that the command line asks for."""
    parser = make_tool_parser(__doc__)
    parser.add_argument('frames', type=Path, help='folder of the frames, <name>.png')
    parser.add_argument('labels', type=Path, help='folder of the colored labels, <name>_L.png')
    parser.add_argument(
        '--out',
        type=lambda text: Path(text).expanduser(),
        default=Path('data/camvid11'),
        help='default: %(default)s',
    )
    parser.add_argument(
        '--size',
        type=parse_size,
        metavar='WIDTHxHEIGHT',
        help='scale to this size (480x360 is usual); default: the original 960x720',
    )
    args = parser.parse_args(argv)

    counts = convert_camvid(args.frames, args.labels, args.out, args.size)
    print(f'{args.out}: {", ".join(f"{count} {split}" for split, count in counts.items())}')


if __name__ == '__main__':
    run_tool(main)

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Show on noisy digits what the pick is worth: `make demo`.

    python tools/demo.py

Three small segmentors are trained on the DiT that ships with the package. The first reads the usual
place, the queries of the middle block, and adds no noise (t = 0). The second reads the block, the
feature and the timestep that are picked without labels. The third reads two features more of the
same pass, picked to go with it. The last lines have the mIoU of each; `demo.html` shows what they
see. Nothing is downloaded; a CPU with two cores needs a few minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmaselect.files import write_atomically
from mmaselect.launch.config import load_config
from mmaselect.openmmlab.checkpoints import read_only_weights
from mmaselect.report.rendering import image_uri, render
from mmaselect.selection import SelectionResult
from mmaselect.terminal.boxes import boxed
from mmaselect.terminal.tool import make_tool_parser, run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'demo' / 'aselect_dit-digits_fcn_demo.py'
#: What a user would read without a selection.
USUAL = ('model.backbone.blocks=2', 'model.backbone.feature=query', 'model.backbone.timestep=0')
#: Three features of one pass, each 96 channels wide.
JOINED = ('model.backbone.selection.top=3', 'model.decode_head.in_channels=288')
#: Canvases on the page.
SHOWN = 4


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_tool_parser(__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='for files')
    parser.add_argument('--config', type=Path, default=CONFIG, help='of the segmentor')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of all trainings'
    )
    return parser.parse_args(argv)


def train(config: Path, folder: Path, options: Sequence[str]) -> float:
    """Train once, in a process of its own; returns the mIoU.

    Raises:
        RuntimeError: If training fails; the message names its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'console.log'
    command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', folder]
    command += ['--cfg-options', *options] if options else []
    with log.open('w') as console:
        done = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = log.read_text(encoding='utf-8', errors='replace').splitlines()[-1:]
        raise RuntimeError(f'training failed, {log} says why: {" ".join(tail)}')
    scalars = max(folder.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in scalars.read_text(encoding='utf-8').splitlines()]
    return next(line['mIoU'] for line in reversed(lines) if 'mIoU' in line)


def predictions(folder: Path, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Label maps of some images, by the model that was trained in a folder."""
    from mmseg.apis import inference_model, init_model

    read_only_weights()
    config = load_config(next(iter(sorted(folder.glob('*.py')))))
    checkpoint = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
    model = init_model(config, checkpoint, device='cpu')
    return [
        inference_model(model, image).pred_sem_seg.data.squeeze(0).cpu().numpy() for image in images
    ]


def painted(labels: np.ndarray, palette: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A label map in colors over its image; pixels without a class stay as they are."""
    colors = palette[np.minimum(labels, len(palette) - 1)]
    known = (labels < len(palette))[..., None]
    return np.where(known, 0.35 * image + 0.65 * colors, image).astype(np.uint8)


def save_page(folder: Path, rows: Sequence[tuple[str, float, Path]], pick: str) -> Path:
    """Write ``demo.html``: canvases, their labels, and what both models see.

    Args:
        folder: Folder of the demo.
        rows: Name, mIoU and folder of each training.
        pick: The place and the timestep that were picked, in words.
    """
    config = load_config(next(iter(sorted(rows[0][2].glob('*.py')))))
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmseg')
    dataset = DATASETS.build(dict(config.val_dataloader.dataset, pipeline=[]))
    palette = np.array(dataset.metainfo['palette'], np.uint8)
    items = [dataset.get_data_info(index) for index in range(SHOWN)]
    images = [item['img'] for item in items]
    columns = [
        ('the image', images),
        (
            'the digits',
            [painted(item['gt_seg_map'], palette, item['img']) for item in items],
        ),
    ]
    for name, score, place in rows:
        found = predictions(place, images)
        # Where there is no label, what a model says does not count.
        tiles = [
            painted(np.where(item['gt_seg_map'] == 255, 255, labels), palette, item['img'])
            for labels, item in zip(found, items, strict=True)
        ]
        columns.append((f'{name}: mIoU {score:.1f}', tiles))
    page = render(
        'demo.html.j2',
        pick=pick,
        names=[name for name, _ in columns],
        rows=[
            [image_uri(tile) for tile in tiles]
            for tiles in zip(*(tiles for _, tiles in columns), strict=True)
        ],
    )
    return write_atomically(folder / 'demo.html', page)


def main(argv: Sequence[str] | None = None) -> None:
    """Train twice, compare, and write the page."""
    args = parse_args(argv)
    folder = args.work_dir
    start = time.monotonic()
    print('1 of 3: the queries of the middle block, at t = 0 (no noise is added) ...', flush=True)
    usual = train(args.config, folder / 'usual', [*USUAL, *args.cfg_options])
    print(f'        mIoU {usual:.1f}')
    print('2 of 3: block, feature and timestep are picked without labels ...', flush=True)
    picked = train(args.config, folder / 'picked', args.cfg_options)
    result = SelectionResult.load(folder / 'picked' / 'selection.json')
    place = f'block {result.blocks[0]}, {result.feature}, t = {result.timestep}'
    print(f'        mIoU {picked:.1f} at {place}')
    print('3 of 3: two features more of the same pass ...', flush=True)
    joined = train(args.config, folder / 'joined', [*JOINED, *args.cfg_options])
    together = SelectionResult.load(folder / 'joined' / 'selection.json')
    print(f'        mIoU {joined:.1f} at {together.where}')
    rows = [
        ('middle block, query, t = 0', usual, folder / 'usual'),
        (f'picked: {place}', picked, folder / 'picked'),
        (f'picked: {len(together.cells)} features of one pass', joined, folder / 'joined'),
    ]
    page = save_page(folder, rows, place)
    lines = [f'{name:<36} mIoU {score:5.1f}' for name, score, _ in rows]
    lines += [
        '',
        f'picked on {result.num_images} images without labels, in {result.seconds:.0f} s',
        f'what they see:   {page}',
        f'the selection:   {folder / "picked" / "selection.html"}',
        f'seconds in all:  {time.monotonic() - start:.0f}',
    ]
    print(boxed(lines, 'mmaselect demo'))


if __name__ == '__main__':
    run_tool(main)

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The original CamVid (701 frames, 32 colors) in the eleven classes that papers report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmaselect.terminal.progress import progress_bar

#: The eleven classes, in the order of their labels, and the original classes (with their colors in
#: the label files) that each unites.
CLASSES = {
    'Sky': {'Sky': (128, 128, 128)},
    'Building': {
        'Archway': (192, 0, 128),
        'Bridge': (0, 128, 64),
        'Building': (128, 0, 0),
        'Tunnel': (64, 0, 64),
        'Wall': (64, 192, 0),
    },
    'Pole': {'Column_Pole': (192, 192, 128), 'TrafficCone': (0, 0, 64)},
    'Road': {
        'LaneMkgsDriv': (128, 0, 192),
        'LaneMkgsNonDriv': (192, 0, 64),
        'Road': (128, 64, 128),
    },
    'Pavement': {
        'ParkingBlock': (64, 192, 128),
        'RoadShoulder': (128, 128, 192),
        'Sidewalk': (0, 0, 192),
    },
    'Tree': {'Tree': (128, 128, 0), 'VegetationMisc': (192, 192, 0)},
    'SignSymbol': {
        'Misc_Text': (128, 128, 64),
        'SignSymbol': (192, 128, 128),
        'TrafficLight': (0, 64, 64),
    },
    'Fence': {'Fence': (64, 64, 128)},
    'Car': {
        'Car': (64, 0, 128),
        'OtherMoving': (128, 64, 64),
        'SUVPickupTruck': (64, 128, 192),
        'Train': (192, 64, 128),
        'Truck_Bus': (192, 128, 192),
    },
    'Pedestrian': {
        'Animal': (64, 128, 64),
        'CartLuggagePram': (64, 0, 192),
        'Child': (192, 128, 64),
        'Pedestrian': (64, 64, 0),
    },
    'Bicyclist': {'Bicyclist': (0, 128, 192), 'MotorcycleScooter': (192, 0, 192)},
}
VOID = (0, 0, 0)
IGNORE = 255


def split_of(name: str) -> str:
    """The part that a frame belongs to, in the usual 367/101/233 division.

    Args:
        name: Name of the frame without its suffix, as ``0016E5_07959``.

    Returns:
        ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ValueError: If the name is of none of the four sequences.
    """
    sequence, _, number = name.partition('_')
    digits = number.removeprefix('f')
    if sequence not in ('0001TP', '0006R0', '0016E5', 'Seq05VD') or not digits.isdigit():
        raise ValueError(
            f'{name!r} is not a CamVid frame: names begin with 0001TP_, 0006R0_, 0016E5_ or '
            f'Seq05VD_ '
            'and end in a number.'
        )
    frame = int(digits)
    if sequence == 'Seq05VD' or (sequence == '0001TP' and frame >= 8550):
        return 'test'
    if sequence == '0016E5' and 7959 <= frame <= 8159:
        return 'val'
    return 'train'


def build_table() -> np.ndarray:
    """Label of every color, (256**3,) uint8, indexed by R * 65536 + G * 256 + B; 255 elsewhere."""
    table = np.full(1 << 24, IGNORE, np.uint8)
    for label, originals in enumerate(CLASSES.values()):
        for red, green, blue in originals.values():
            table[(red << 16) | (green << 8) | blue] = label
    return table


def convert_labels(colors: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Turn colors into labels.

    Args:
        colors: (H, W, 3) uint8, RGB.
        table: What :func:`build_table` made.
        name: The file, for the message.

    Returns:
        (H, W) uint8: 0..10, or 255 for void and for the release's few stray colors.

    Raises:
        ValueError: If more than 1 % of the pixels have a color that is not a class's: another file.
    """
    red, green, blue = (colors[..., channel].astype(np.uint32) for channel in range(3))
    labels = table[(red << 16) | (green << 8) | blue]
    stray = (labels == IGNORE) & (colors != VOID).any(-1)
    if stray.mean() > 0.01:
        raise ValueError(
            f'{name}: {100 * stray.mean():.0f} % of the pixels have none of the 32 CamVid colors; '
            'the labels must be the colored `*_L.png` files of the official release.'
        )
    return labels


def find_pairs(frames: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Pair every label file with its frame.

    Args:
        frames: Folder of ``<name>.png``.
        labels: Folder of ``<name>_L.png``.

    Returns:
        Frame and label file of every name, sorted.

    Raises:
        FileNotFoundError: If there is no label file, or a label file has no frame.
    """
    label_files = sorted(labels.glob('*_L.png'))
    if not label_files:
        raise FileNotFoundError(f'No `*_L.png` in {str(labels)!r}: give the folder of the labels.')
    pairs = [(frames / f'{path.stem[:-2]}.png', path) for path in label_files]
    missing = [frame.name for frame, _ in pairs if not frame.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{str(frames)!r} lacks {len(missing)} of {len(pairs)} frames, {missing[0]} first.'
        )
    return pairs


def convert_camvid(
    frames: Path, labels: Path, out: Path, size: tuple[int, int] | None = None
) -> dict[str, int]:
    """Write images and labels of the eleven classes, in the layout of ``CamVidDataset``.

    Args:
        frames: Folder of ``<name>.png``.
        labels: Folder of ``<name>_L.png``.
        out: Folder that gets ``images/{train,val,test}`` and ``annotations/{train,val,test}``.
        size: Width and height to scale to; the original size if None.

    Returns:
        Number of frames in each part.

    Raises:
        FileNotFoundError: If there is no label file, or a label file has no frame.
        ValueError: If a file is none of CamVid's.
    """
    table = build_table()
    counts = dict(train=0, val=0, test=0)
    with progress_bar('frames') as bar:
        for frame_file, label_file in bar.track(find_pairs(frames, labels), description='CamVid'):
            split = split_of(frame_file.stem)
            frame = _read(frame_file)
            colors = np.asarray(_read(label_file))
            classes = Image.fromarray(convert_labels(colors, table, str(label_file)))
            if size is not None:
                frame = frame.resize(size, Image.Resampling.LANCZOS)
                classes = classes.resize(size, Image.Resampling.NEAREST)
            for kind, image in (('images', frame), ('annotations', classes)):
                folder = out / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / frame_file.name)
            counts[split] += 1
    return counts


def _read(path: Path) -> Image.Image:
    """An image file, RGB.

    Raises:
        ValueError: If it cannot be read; the message names it.
    """
    try:
        with Image.open(path) as opened:
            return opened.convert('RGB')
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(
            f'image {str(path)!r} cannot be read ({error}): remove it, and fetch it again'
        ) from error

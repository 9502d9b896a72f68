# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Predictions of a trained model for image files: label maps or classes, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from rich.progress import track

from mmaselect.files import written_aside
from mmaselect.images.reading import load_rgb
from mmaselect.images.sources import find_image_files
from mmaselect.launch.config import get_toolbox, load_config
from mmaselect.openmmlab.checkpoints import check_checkpoint_file, read_only_weights
from mmaselect.openmmlab.messages import without_chatter
from mmaselect.terminal.tables import write_csv

#: Images on the contact sheet, and the height of each, in pixels.
SHEET_IMAGES = 12
SHEET_HEIGHT = 160
SHEET_COLUMNS = 3


def image_files(given: Sequence[str]) -> list[Path]:
    """Image files among paths of files and of folders.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If there are no images.
    """
    files: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            files += find_image_files(path)
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f'there is no image and no folder {name!r}')
    if not files:
        raise ValueError(f'there are no images in {", ".join(map(repr, given))}')
    return files


def predict(
    images: Sequence[Path], config: str, checkpoint: str, out: Path, device: str
) -> list[Path]:
    """Predict, and write what was predicted.

    Args:
        images: Files.
        config: Config of the model.
        checkpoint: Its trained weights.
        out: Folder for ``masks/`` or ``predictions.csv``, and for ``overview.png``.
        device: Where to compute.

    Returns:
        list: What was written.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If the checkpoint is not whole, or the config is of another kind.
    """
    read_only_weights()
    loaded = load_config(config)
    toolbox = get_toolbox(loaded)
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'there is no checkpoint file {checkpoint!r}')
    check_checkpoint_file(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    if toolbox == 'mmseg':
        return _segment(images, loaded, checkpoint, out, device)
    if toolbox == 'mmpretrain':
        return _classify(images, loaded, checkpoint, out, device)
    raise ValueError(
        f'{config} is a config of {toolbox}, and `mmaselect predict` takes classifiers and '
        f'segmentors: use tools/test.py --show-dir'
    )


def _unique_names(images: Sequence[Path]) -> list[str]:
    """A name without a suffix for each image; those of equal names get a number."""
    seen: dict[str, int] = {}
    names = []
    for path in images:
        count = seen[path.stem] = seen.get(path.stem, 0) + 1
        names.append(path.stem if count == 1 else f'{path.stem}-{count}')
    return names


def _segment(
    images: Sequence[Path], config: Any, checkpoint: str, out: Path, device: str
) -> list[Path]:
    with without_chatter():
        import mmseg.datasets  # noqa: F401 (else it is imported later, and prints)
        from mmseg.apis import inference_model, init_model

    model = init_model(config, checkpoint, device=device)
    palette = _palette(len(model.dataset_meta['classes']))
    tiles: list[Image.Image] = []
    (out / 'masks').mkdir(exist_ok=True)
    for path, name in zip(track(images, 'predicting'), _unique_names(images), strict=True):
        labels = inference_model(model, str(path)).pred_sem_seg.data
        mask = Image.fromarray(labels.squeeze(0).cpu().numpy().astype(np.uint8), 'P')
        mask.putpalette(palette.flatten().tolist())
        with written_aside(out / 'masks' / f'{name}.png') as aside:
            mask.save(aside)
        if len(tiles) < SHEET_IMAGES:
            photo = Image.fromarray(load_rgb(path))
            colors = mask.convert('RGB').resize(photo.size, Image.Resampling.NEAREST)
            tiles.append(_side_by_side(photo, Image.blend(photo, colors, 0.6)))
    return [out / 'masks', _save_sheet(tiles, out / 'overview.png')]


def _classify(
    images: Sequence[Path], config: Any, checkpoint: str, out: Path, device: str
) -> list[Path]:
    with without_chatter():
        import mmpretrain.datasets  # noqa: F401 (else the inferencer imports it, which prints)
        from mmpretrain.apis import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(config, pretrained=checkpoint, device=device)
    rows: list[dict[str, str]] = []
    tiles: list[Image.Image] = []
    predictions = inferencer([str(path) for path in images])  # it draws a progress bar
    for path, found in zip(images, predictions, strict=True):
        name = found.get('pred_class', str(found['pred_label']))
        rows.append(dict(image=str(path), label=name, score=f'{found["pred_score"]:.4f}'))
        if len(tiles) < SHEET_IMAGES:
            tiles.append(_captioned(Image.fromarray(load_rgb(path)), name))
    table = out / 'predictions.csv'
    write_csv(table, rows)
    return [table, _save_sheet(tiles, out / 'overview.png')]


def _palette(classes: int) -> np.ndarray:
    """A color for each class, (classes, 3) uint8."""
    colors = colormaps['tab20'](np.arange(classes) % 20)[:, :3]
    return (255 * colors).round().astype(np.uint8)


def _to_height(image: Image.Image) -> Image.Image:
    width = max(1, round(image.width * SHEET_HEIGHT / image.height))
    return image.resize((width, SHEET_HEIGHT))


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    left, right = _to_height(left), _to_height(right)
    tile = Image.new('RGB', (left.width + right.width, SHEET_HEIGHT))
    tile.paste(left, (0, 0))
    tile.paste(right, (left.width, 0))
    return tile


def _captioned(image: Image.Image, text: str) -> Image.Image:
    image = _to_height(image)
    tile = Image.new('RGB', (image.width, SHEET_HEIGHT + 16), 'white')
    tile.paste(image, (0, 0))
    ImageDraw.Draw(tile).text((3, SHEET_HEIGHT + 2), text, fill='black')
    return tile


def _save_sheet(tiles: Sequence[Image.Image], path: Path) -> Path:
    """Tiles in rows, as one picture."""
    rows = [tiles[start : start + SHEET_COLUMNS] for start in range(0, len(tiles), SHEET_COLUMNS)]
    gap = 6
    width = max(sum(tile.width + gap for tile in row) for row in rows)
    height = sum(max(tile.height for tile in row) + gap for row in rows)
    sheet = Image.new('RGB', (width, height), 'white')
    top = 0
    for row in rows:
        left = 0
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + gap
        top += max(tile.height for tile in row) + gap
    with written_aside(path) as aside:
        sheet.save(aside)
    return path

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a folder of images holds: classes as folders, label maps, or boxes in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmaselect.checks import shorten
from mmaselect.files import write_atomically
from mmaselect.images.labeled import IGNORE_INDEX
from mmaselect.images.reading import open_image
from mmaselect.images.sources import IMAGE_SUFFIXES

#: Names of folders, as data sets call them; the last ones are those of Pascal VOC and Cityscapes.
IMAGE_FOLDERS = ('images', 'imgs', 'image', 'JPEGImages', 'leftImg8bit')
MASK_FOLDERS = ('masks', 'annotations', 'labels', 'mask', 'gt', 'SegmentationClass', 'gtFine')
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'validation', 'valid', 'test')
#: Where Pascal VOC lists the images of each part.
VOC_LISTS = Path('ImageSets', 'Segmentation')
#: Of several label maps of an image, the one with this in its name: in Cityscapes' others, labels
#: are not those of its benchmark, or colors.
PREFERRED_MASK = 'labelTrainIds'
#: Share of the images that is held out where the folder has no validation images.
HELD_OUT = 0.1
#: Label maps that are read to find the classes.
MASKS_READ = 500
LAYOUTS = (
    'a folder for each class (FOLDER/cat/*.jpg, FOLDER/dog/*.jpg), or the same below train/ and '
    'val/; images and label maps whose names begin alike (FOLDER/images/*.jpg, '
    'FOLDER/masks/*.png), or the same below images/train/, images/val/, masks/train/ and '
    "masks/val/; boxes in COCO's format (FOLDER/annotations/*train*.json and *val*.json, or "
    'FOLDER/train/*.json next to the images)'
)


@dataclass(frozen=True)
class FolderFacts:
    """What a folder of images holds.

    Attributes:
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``.
        root: The folder.
        classes: Names of the classes; label k is the k-th of them.
        train: Training images, as paths below the folder: of class folders, or of images.
        val: The same of the validation images; None where some of ``train`` are held out.
        masks: Folders of the label maps of training and validation images.
        suffixes: How names of images and of label maps end.
        lists: Files, below the folder, with the names of training and validation images; for
            detection, those with the boxes.
        has_masks: Whether objects have masks in addition to boxes.
        side: Short side of the smaller images, in pixels.
        count: Training images, before some are held out.
    """

    task: str
    root: Path
    classes: tuple[str, ...]
    train: str
    val: str | None
    side: int
    count: int
    masks: tuple[str, str | None] | None = None
    suffixes: tuple[str, str] | None = None
    lists: tuple[str, str | None] | None = None
    has_masks: bool = False

    @property
    def splits(self) -> bool:
        """Whether `mmaselect init` has to say which images are held out."""
        if self.task == 'detection':
            return self.lists is not None and self.lists[1] is None
        return self.task == 'segmentation' and self.val is None


def look_into(folder: str | Path) -> FolderFacts:
    """What a folder of images holds.

    Args:
        folder: Classes as folders, images and label maps, or images and boxes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its layout is not one that is known; the message shows those that are.
    """
    root = Path(folder)
    if root.is_file():
        raise ValueError(
            f'{str(root)!r} is a file, and a folder is wanted: unpack an archive first; of a list '
            f'of images, make a folder for each class'
        )
    if not root.is_dir():
        raise FileNotFoundError(f'there is no folder {str(root)!r}')
    boxes = _box_files(root)
    if boxes:
        return _detection(root, boxes)
    images, masks = _first(root, IMAGE_FOLDERS), _first(root, MASK_FOLDERS)
    if images is not None and masks is not None:
        return _segmentation(root, images, masks)
    train, val = _first(root, TRAIN_NAMES), _first(root, VAL_NAMES)
    return _classification(root, train or root, val)


def write_splits(data: FolderFacts, folder: Path) -> None:
    """Write which images are trained on and which are held out, where the folder has no split.

    Args:
        data: What the folder holds.
        folder: Where ``train.txt`` and ``val.txt`` go; for detection ``.json``.
    """
    if not data.splits:
        return
    if data.task == 'detection':
        assert data.lists is not None
        content = _read_boxes(data.root / data.lists[0])
        ids = [image['id'] for image in content['images']]
        held_out = _held_out(ids)
        for name, chosen_ids in (('train', {*ids} - held_out), ('val', held_out)):
            part = dict(
                content,
                images=[one for one in content['images'] if one['id'] in chosen_ids],
                annotations=[o for o in content['annotations'] if o['image_id'] in chosen_ids],
            )
            write_atomically(folder / f'{name}.json', json.dumps(part))
        return
    assert data.suffixes is not None
    suffix = data.suffixes[0]
    folder_of = data.root / data.train
    stems = [_below(path, folder_of).removesuffix(suffix) for path in _all_images(folder_of)]
    if data.lists is not None:
        stems = _lines(data.root / data.lists[0])
    held_out = _held_out(stems)
    for name, chosen in (
        ('train', [stem for stem in stems if stem not in held_out]),
        ('val', sorted(held_out)),
    ):
        write_atomically(folder / f'{name}.txt', '\n'.join(chosen) + '\n')


def _held_out(names: Sequence[Any]) -> set[Any]:
    """A tenth of some names, the same each time."""
    order = np.random.default_rng(0).permutation(len(names))
    return {names[i] for i in order[: max(1, round(HELD_OUT * len(names)))]}


# -- any folder -----------------------------------------------------------------------------------
def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images(folder: Path) -> list[Path]:
    """Images right in a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _all_images(folder: Path) -> list[Path]:
    """Images in a folder, and in those below it."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _lines(path: Path) -> list[str]:
    """Names in a list, without blanks and empty lines."""
    lines = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    return [line for line in lines if line]


def _unknown(root: Path, found: str) -> ValueError:
    return ValueError(f'{str(root)!r}: {found}. These layouts are known: {LAYOUTS}')


def _short_side(paths: Sequence[Path]) -> int:
    """Short side of the smaller images among some."""
    sides = []
    for path in paths[:: max(1, len(paths) // 50)]:
        with open_image(path) as image:
            sides.append(min(image.size))
    return int(np.quantile(sides, 0.1))


# -- classes as folders ---------------------------------------------------------------------------
def _classification(root: Path, train: Path, val: Path | None) -> FolderFacts:
    names = sorted(path.name for path in train.iterdir() if path.is_dir())
    names = [name for name in names if not name.startswith('.')]
    files = {name: _images(train / name) for name in names}
    empty = [name for name, found in files.items() if not found]
    if not names or len(empty) == len(names):
        raise _unknown(root, _what_is_there(train))
    if any(any((train / name).iterdir()) for name in empty):
        raise _unknown(root, _what_is_there(train))
    if empty:
        raise _unknown(root, f'the class folders {empty[:5]} have no images')
    if len(names) < 2:
        raise _unknown(root, f'there is one class, {names[0]!r}, and nothing to classify')
    if val is not None:
        others = {path.name for path in val.iterdir() if path.is_dir()}
        if unknown := sorted(others.difference(names)):
            raise ValueError(
                f'{str(val)!r} has class folders that {str(train)!r} lacks: {unknown[:5]}'
            )
    listed = [path for found in files.values() for path in found]
    return FolderFacts(
        'classification',
        root,
        tuple(names),
        '' if train == root else train.name,
        None if val is None else val.name,
        _short_side(listed),
        len(listed),
    )


def _what_is_there(folder: Path) -> str:
    """Why a folder has no classes, in words."""
    images = _all_images(folder)
    if not images:
        return f'there is no image in {str(folder)!r}'
    where = sorted({_below(path.parent, folder) for path in images})
    said = (
        f'there are {len(images)} images in {shorten(where)} and no labels that are known: neither '
        f'two folders of images next to each other, nor label maps'
    )
    others = {path.suffix for path in folder.rglob('*') if path.is_file()}
    for suffix, kind in (('.xml', "Pascal VOC's boxes"), ('.txt', "YOLO's boxes"), ('.csv', 'CSV')):
        if suffix in others:
            said += f", and {suffix} files. Of {kind}, make COCO's format or folders of classes"
            break
    return said + '. To read features alone, no labels are needed: `mmaselect features`'


# -- images and label maps ------------------------------------------------------------------------
def _segmentation(root: Path, images: Path, masks: Path) -> FolderFacts:
    train_images, val_images = _first(images, TRAIN_NAMES), _first(images, VAL_NAMES)
    train_masks = masks if train_images is None else masks / train_images.name
    val_masks = None if val_images is None else masks / val_images.name
    if train_images is None:
        train_images, val_images, val_masks = images, None, None
    found = _all_images(train_images)
    if not found:
        raise _unknown(root, f'{str(train_images)!r} holds no images')
    if not train_masks.is_dir():
        raise _unknown(root, f'there is no folder {str(train_masks)!r} for the label maps')
    lists = _voc_lists(root)
    if lists is not None:
        wanted = {*_lines(root / lists[0])}
        found = [path for path in found if path.stem in wanted]
        if not found:
            raise _unknown(root, f'{lists[0]} names no image of {str(train_images)!r}')
        if lists[1] is not None:  # they tell the parts apart in one folder
            val_images, val_masks = train_images, train_masks
    suffixes = _suffixes(root, train_images, found, train_masks)
    names = [_below(path, train_images).removesuffix(suffixes[0]) for path in found]
    classes = _class_names(root, [train_masks / f'{name}{suffixes[1]}' for name in names])
    return FolderFacts(
        'segmentation',
        root,
        classes,
        _below(train_images, root),
        None if val_images is None else _below(val_images, root),
        _short_side(found),
        len(found),
        (_below(train_masks, root), None if val_masks is None else _below(val_masks, root)),
        suffixes,
        lists,
    )


def _voc_lists(root: Path) -> tuple[str, str | None] | None:
    """Lists of training and validation images, as Pascal VOC has them."""
    train, val = (root / VOC_LISTS / f'{part}.txt' for part in ('train', 'val'))
    if not train.is_file():
        return None
    return _below(train, root), _below(val, root) if val.is_file() else None


def _suffixes(root: Path, folder: Path, images: Sequence[Path], masks: Path) -> tuple[str, str]:
    """How names of images and of their label maps end; what comes before is equal.

    Raises:
        ValueError: If images have no label map, or names end in several ways.
    """
    names = [_below(path, folder) for path in images]
    there = {_below(path, masks) for path in _all_images(masks)}

    def without(ends: tuple[str, str]) -> list[str]:
        return [name for name in names if f'{name.removesuffix(ends[0])}{ends[1]}' not in there]

    stem = names[0].rpartition('.')[0]
    best: tuple[str, str] | None = None
    # The longest common beginning that all images have with a label map.
    for cut in range(len(stem), stem.rfind('/') + 1, -1):
        tails = {mask[cut:] for mask in there if mask.startswith(stem[:cut])}
        for tail in sorted(tails, key=lambda tail: (PREFERRED_MASK not in tail, len(tail), tail)):
            ends = (names[0][cut:], tail)
            if not without(ends):
                return ends
            best = best or ends
    stems = {name.rpartition('.')[0] for name in there}
    if all(name.rpartition('.')[0] in stems for name in names):
        kinds = (sorted({Path(name).suffix for name in given}) for given in (names, there))
        raise ValueError(
            f'{str(root)!r}: images have the suffixes {next(kinds)}, label maps {next(kinds)}, and '
            f'MMSegmentation takes one of each: convert them'
        )
    missing = without(best) if best is not None else names
    raise _unknown(
        root,
        f'{len(missing)} of {len(names)} images have no label map, {missing[0]!r} for one; names '
        f'of label maps, such as {min(there, default=None)!r}, must begin as those of the images',
    )


def _class_names(root: Path, masks: Sequence[Path]) -> tuple[str, ...]:
    """Names of the classes in label maps, from ``classes.txt`` if there is one."""
    values: set[int] = set()
    for path in masks[:MASKS_READ]:
        with open_image(path) as mask:
            mode, labels_there = mask.mode, np.unique(np.asarray(mask))
        if mode not in ('L', 'P', '1', 'I', 'I;16'):
            raise ValueError(
                f'{path} has the mode {mode}, and a label map has one number for each pixel: '
                f'convert it, say by Image.fromarray(labels.astype(numpy.uint8))'
            )
        values.update(int(value) for value in labels_there)
    labels = sorted(values - {IGNORE_INDEX})
    if not labels or labels[-1] > IGNORE_INDEX:
        raise ValueError(
            f'the label maps of {str(root)!r} hold {labels[:10]}: labels are 0, 1, 2, ..., and '
            f'{IGNORE_INDEX} for pixels without a class'
        )
    listed = root / 'classes.txt'
    if not listed.is_file():
        return tuple(f'class_{label}' for label in range(labels[-1] + 1))
    names = _lines(listed)
    if len(names) <= labels[-1]:
        raise ValueError(
            f'{listed} has {len(names)} names, and the label maps use label {labels[-1]}: write '
            f'one name a line, that of label 0 first'
        )
    return tuple(names)


# -- boxes ----------------------------------------------------------------------------------------
def _box_files(root: Path) -> list[Path]:
    """JSON files where COCO's format has them: in the folder, in ``annotations``, in the parts."""
    folders = [root, root / 'annotations', *(root / name for name in (*TRAIN_NAMES, *VAL_NAMES))]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob('*.json'))]


def _read_boxes(path: Path) -> dict[str, Any]:
    """A file of COCO's format with boxes; empty if it is something else."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise ValueError(f'{str(path)!r} cannot be read as JSON ({error})') from error
    if not isinstance(content, dict) or not {'images', 'annotations', 'categories'} <= {*content}:
        return {}
    return content if any('bbox' in one for one in content['annotations']) else {}


def _part(path: Path, root: Path, names: Iterable[str]) -> bool:
    return any(name in _below(path, root).lower() for name in names)


def _detection(root: Path, files: Sequence[Path]) -> FolderFacts:
    found = {path: content for path in files if (content := _read_boxes(path))}
    # COCO has files of persons' keypoints next to those of all objects.
    files = [path for path in found if 'keypoints' not in path.name] or list(found)
    if not files:
        raise _unknown(root, f"{_below(_box_files(root)[0], root)} has no boxes in COCO's format")
    val = [path for path in files if _part(path, root, VAL_NAMES)]
    train = [path for path in files if path not in val]
    val = [path for path in val if not _part(path, root, ('test',))] or val
    if len(train) != 1 or len(val) > 1:
        raise ValueError(
            f'{str(root)!r}: which files are to be trained on and validated on is open: found '
            f'{[_below(path, root) for path in files]}. Leave one with "train" in its name and at '
            f'most one with "val"'
        )
    content = found[train[0]]
    used = {one['category_id'] for one in content['annotations']}
    classes = tuple(one['name'] for one in content['categories'] if one['id'] in used)
    if not classes:
        raise ValueError(f'{str(train[0])!r} has no object of any of its categories')
    folders = [_image_folder(root, path, found[path]) for path in (*train, *val)]
    images = [folders[0] / one['file_name'] for one in content['images']]
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{_below(train[0], root)} names {len(images)} images, and {len(missing)} are not '
            f'there, {str(missing[0])!r} for one'
        )
    return FolderFacts(
        'detection',
        root,
        classes,
        _below(folders[0], root),
        _below(folders[1], root) if val else None,
        _short_side(images),
        len(images),
        lists=(_below(train[0], root), _below(val[0], root) if val else None),
        has_masks=all(one.get('segmentation') for one in content['annotations']),
    )


def _image_folder(root: Path, path: Path, content: dict[str, Any]) -> Path:
    """Where the images of a file are."""
    if not content['images']:
        raise ValueError(f'{str(path)!r} names no images')
    first = content['images'][0]['file_name']
    part = path.stem.rpartition('_')[2]  # instances_train2017
    names = ['', part, 'images', f'images/{part}']
    names += [f'{above}{name}' for name in (*TRAIN_NAMES, *VAL_NAMES) for above in ('', 'images/')]
    folders = [path.parent, *(root / name for name in names)]
    for folder in folders:
        if (folder / first).is_file():
            return folder
    raise FileNotFoundError(
        f'{_below(path, root)} names {first!r}, and there is no such file in '
        f'{list(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))}'
    )

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A config for a folder of images: what is in the folder, what the model is like, and the text."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.families import family_of
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.images.labeled import IGNORE_INDEX
from mmaselect.images.reading import open_image
from mmaselect.images.sources import IMAGE_SUFFIXES

#: Names of folders, as data sets call them.
IMAGE_FOLDERS = ('images', 'imgs', 'image')
MASK_FOLDERS = ('masks', 'annotations', 'labels', 'mask', 'gt')
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'validation', 'valid', 'test')
#: Share of the images that is held out where the folder has no validation images.
HELD_OUT = 0.1
#: Label maps that are read to find the classes.
MASKS_READ = 500
#: Maps, each of another block, that a segmentation head is given.
SEGMENTATION_MAPS = 4
LAYOUTS = (
    'a folder for each class (FOLDER/cat/*.jpg, FOLDER/dog/*.jpg), or the same below train/ and '
    'val/; images and label maps with equal names (FOLDER/images/*.jpg, FOLDER/masks/*.png), or '
    'the same below images/train/, images/val/, masks/train/ and masks/val/'
)


@dataclass(frozen=True)
class FolderFacts:
    """What a folder of images holds.

    Attributes:
        task: ``'classification'`` or ``'segmentation'``.
        root: The folder.
        classes: Names of the classes; label k is the k-th of them.
        train: Training images, as paths below the folder: of class folders, or of images.
        val: The same of the validation images; None where some of ``train`` are held out.
        masks: Folders of the label maps of training and validation images.
        suffixes: Suffix of images and of label maps.
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


@dataclass(frozen=True)
class ModelFacts:
    """What a config must know of a model.

    Attributes:
        name: What ``pretrained`` takes.
        width: Channels of a map.
        native_size: Side, in pixels, of the images that it was trained on; 512 if unknown.
        num_blocks: Its blocks.
    """

    name: str
    width: int
    native_size: int
    num_blocks: int


@dataclass(frozen=True)
class Recipe:
    """What may be chosen.

    Attributes:
        iterations: Iterations of training; the task's default if None.
        batch_size: Images a step.
        lr: Learning rate; the task's default if None.
    """

    iterations: int | None = None
    batch_size: int = 8
    lr: float | None = None


def look_into(folder: str | Path) -> FolderFacts:
    """What a folder of images holds.

    Args:
        folder: Classes as folders, or images and label maps.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its layout is not one that is known; the message shows those that are.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f'there is no folder {str(root)!r}')
    images = _first(root, IMAGE_FOLDERS)
    masks = _first(root, MASK_FOLDERS)
    if images is not None and masks is not None:
        return _segmentation(root, images, masks)
    train, val = _first(root, TRAIN_NAMES), _first(root, VAL_NAMES)
    return _classification(root, train or root, val)


def describe_model(pretrained: str) -> ModelFacts:
    """What a config must know of a model; only its configs are read, no weights.

    Args:
        pretrained: As the backbone takes it.

    Raises:
        FileNotFoundError: If a part of the pipeline is missing.
        ValueError: If its transformer class is unknown.
    """
    source = PipelineSource(ModelSource(pretrained))
    family = family_of(source)
    sample = family.config.get('sample_size')
    scale = 8 if source.has_vae() else 1
    native = int(sample) * scale if isinstance(sample, int) else 512
    return ModelFacts(pretrained, family.width, native, family.num_blocks)


def config_text(data: FolderFacts, model: ModelFacts, recipe: Recipe, command: str) -> str:
    """The config.

    Args:
        data: Data of the folder.
        model: Model of the model.
        recipe: What was chosen.
        command: The command that makes the config, for its first line.
    """
    size = training_size(data.side, model.native_size)
    write = _segmentation_config if data.task == 'segmentation' else _classification_config
    head = f'# Made by `{command}`. It is yours: edit it.\n'
    return head + write(data, model, recipe, size)


def training_size(side: int, native_size: int) -> int:
    """Side of the squares that training sees, in pixels.

    Args:
        side: Short side of the smaller images.
        native_size: Native size of the model.

    Returns:
        The model's own size where the images have about that; else what the images have, up to 512,
        or up to 96 for models of small images, as in ``configs/segmentation``.

    Example:
        >>> training_size(28, 28), training_size(180, 32), training_size(500, 512)
        (28, 96, 512)
    """
    if native_size / 1.5 < side < native_size * 1.5:
        return native_size
    return min(512, max(96, native_size), max(32, side // 32 * 32))


def write_splits(data: FolderFacts, folder: Path) -> None:
    """Write the names of training and held-out images of a segmentation set without a split.

    Args:
        data: Data of the folder.
        folder: Where ``train.txt`` and ``val.txt`` go.
    """
    if data.task != 'segmentation' or data.val is not None:
        return
    stems = [path.stem for path in _images(data.root / data.train)]
    order = np.random.default_rng(0).permutation(len(stems))
    held_out = {stems[i] for i in order[: max(1, round(HELD_OUT * len(stems)))]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ('train', [stem for stem in stems if stem not in held_out]),
        ('val', sorted(held_out)),
    ):
        (folder / f'{name}.txt').write_text('\n'.join(chosen) + '\n', encoding='utf-8')


# -- the folder -----------------------------------------------------------------------------------
def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images(folder: Path) -> list[Path]:
    """Images right in a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _unknown(root: Path, found: str) -> ValueError:
    return ValueError(f'{str(root)!r}: {found}. These layouts are known: {LAYOUTS}')


def _short_side(paths: Sequence[Path]) -> int:
    """Short side of the smaller images among some."""
    sides = []
    for path in paths[:: max(1, len(paths) // 50)]:
        with open_image(path) as image:
            sides.append(min(image.size))
    return int(np.quantile(sides, 0.1))


def _classification(root: Path, train: Path, val: Path | None) -> FolderFacts:
    names = sorted(path.name for path in train.iterdir() if path.is_dir())
    names = [name for name in names if not name.startswith('.')]
    files = {name: _images(train / name) for name in names}
    empty = [name for name, found in files.items() if not found]
    if not names or len(empty) == len(names):
        raise _unknown(root, f'there is no folder with images in {str(train)!r}')
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


def _segmentation(root: Path, images: Path, masks: Path) -> FolderFacts:
    train_images = _first(images, TRAIN_NAMES)
    val_images = _first(images, VAL_NAMES)
    train_masks = masks if train_images is None else masks / train_images.name
    val_masks = None if val_images is None else masks / val_images.name
    if train_images is None:
        train_images, val_images, val_masks = images, None, None
    found = _images(train_images)
    if not found:
        raise _unknown(root, f'{str(train_images)!r} holds no images')
    if not train_masks.is_dir():
        raise _unknown(root, f'there is no folder {str(train_masks)!r} for the label maps')
    labels = {path.stem: path for path in _images(train_masks)}
    missing = [path.name for path in found if path.stem not in labels]
    if missing:
        raise _unknown(root, f'{len(missing)} images have no label map, {missing[0]!r} for one')
    suffixes = {path.suffix for path in found}, {labels[path.stem].suffix for path in found}
    if any(len(kinds) > 1 for kinds in suffixes):
        raise ValueError(
            f'{str(root)!r}: images have the suffixes {sorted(suffixes[0])}, label maps '
            f'{sorted(suffixes[1])}, and MMSegmentation takes one of each: convert them'
        )
    (image_suffix,), (mask_suffix,) = suffixes
    classes = _class_names(root, [labels[path.stem] for path in found])

    def below(path: Path | None) -> str | None:
        return None if path is None else path.relative_to(root).as_posix()

    return FolderFacts(
        'segmentation',
        root,
        classes,
        below(train_images) or '',
        below(val_images),
        _short_side(found),
        len(found),
        (below(train_masks) or '', below(val_masks)),
        (image_suffix, mask_suffix),
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
    names = [line.strip() for line in listed.read_text(encoding='utf-8').splitlines()]
    names = [name for name in names if name]
    if len(names) <= labels[-1]:
        raise ValueError(
            f'{listed} has {len(names)} names, and the label maps use label {labels[-1]}: write '
            f'one name a line, that of label 0 first'
        )
    return tuple(names)


# -- the text -------------------------------------------------------------------------------------
def _backbone(model: ModelFacts, size: int, maps: int = 1) -> str:
    blocks = 'auto' if maps == 1 else f'auto:{maps}'
    return f"""dict(
        type='mmaselect.ASelecTDiT',
        pretrained={model.name!r},
        # Block and feature are picked with the timestep. All blocks are built for that: where
        # memory is short, '{blocks}:<=N' leaves out those behind block N.
        blocks={blocks!r},
        feature='auto',
        timestep='auto',
        calibration=train_set,
        # They are picked at the size that training sees.
        selection=dict(image_size={size}),
        dtype='auto',
    )"""


def _runtime(scope: str, visualizer: str) -> str:
    return f"""custom_imports = dict(imports=['mmaselect'], allow_failed_imports=False)
default_scope = '{scope}'
# Writes selection.json, selection.png and selection.html into the work directory.
custom_hooks = [dict(type='mmaselect.SelectionHook')]
visualizer = dict(
    type='{visualizer}', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
"""


def _names(classes: Sequence[str]) -> str:
    return pprint.pformat(list(classes), width=96, compact=True)


def _classification_config(data: FolderFacts, model: ModelFacts, recipe: Recipe, size: int) -> str:
    kind = (
        f"dict(type='CustomDataset', data_root={str(data.root.resolve())!r}, "
        f'metainfo=dict(classes=classes))'
    )
    if data.val is None:
        train = (
            f"dict(type='mmaselect.HoldOut', part='train', num_val={HELD_OUT}, "
            f'dataset=dict(whole_set, data_prefix={data.train!r}))'
        )
        val = "dict(train_set, part='val')"
    else:
        train = f'dict(whole_set, data_prefix={data.train!r})'
        val = f'dict(whole_set, data_prefix={data.val!r})'
    per_epoch = max(1, round(data.count / recipe.batch_size))
    epochs = 10 if recipe.iterations is None else max(1, round(recipe.iterations / per_epoch))
    lr = 1e-3 if recipe.lr is None else recipe.lr
    return f"""{_runtime('mmpretrain', 'UniversalVisualizer')}classes = {_names(data.classes)}
whole_set = {kind}
train_set = {train}
val_set = {val}
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=len(classes),
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        to_rgb=True,
    ),
    backbone={_backbone(model, size)},
    # The reference head of A-SelecT: two attention blocks around a class token.
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        in_channels={model.width},
        num_classes=len(classes),
        embed_dims=400,
        num_layers=2,
        num_heads=8,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={size}, edge='short'),
    dict(type='RandomCrop', crop_size={size}),
    # Leave it out where left and right differ, as in letters.
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={size}, edge='short'),
    dict(type='CenterCrop', crop_size={size}),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size={recipe.batch_size},
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(train_set, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size={recipe.batch_size},
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(val_set, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}, weight_decay=1e-3))
param_scheduler = dict(type='CosineAnnealingLR', T_max={epochs}, end={epochs}, by_epoch=True,
                       convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
randomness = dict(seed=0)
"""


def _segmentation_config(data: FolderFacts, model: ModelFacts, recipe: Recipe, size: int) -> str:
    assert data.masks is not None and data.suffixes is not None
    image_suffix, mask_suffix = data.suffixes
    whole = f"""dict(
    type='BaseSegDataset',
    data_root={str(data.root.resolve())!r},
    img_suffix={image_suffix!r},
    seg_map_suffix={mask_suffix!r},
    metainfo=dict(classes=classes),
)"""

    def part(images: str, masks: str, split: str | None) -> str:
        # Names of images, which `mmaselect init` wrote next to the config.
        listed = '' if split is None else f", ann_file='{{{{fileDirname}}}}/splits/{split}.txt'"
        return (
            f'dict(whole_set, data_prefix=dict(img_path={images!r}, seg_map_path={masks!r})'
            f'{listed})'
        )

    if data.val is None:
        train = part(data.train, data.masks[0], 'train')
        val = part(data.train, data.masks[0], 'val')
    else:
        train = part(data.train, data.masks[0], None)
        val = part(data.val, data.masks[1] or '', None)
    maps = min(SEGMENTATION_MAPS, model.num_blocks)
    iterations = 2000 if recipe.iterations is None else recipe.iterations
    lr = 1e-3 if recipe.lr is None else recipe.lr
    interval = max(1, min(iterations, max(100, iterations // 4)))
    return f"""{_runtime('mmseg', 'SegLocalVisualizer')}log_processor = dict(by_epoch=False)
classes = {_names(data.classes)}
whole_set = {whole}
train_set = {train}
val_set = {val}
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=({size}, {size}),
    ),
    backbone={_backbone(model, size, maps)},
    decode_head=dict(
        type='FCNHead',
        in_channels={[model.width] * maps},
        in_index={list(range(maps))},
        input_transform='resize_concat',
        channels=128,
        num_convs=2,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=len(classes),
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=({size}, {size}), cat_max_ratio=0.75),
    # Leave it out where left and right differ, as in letters.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size={recipe.batch_size},
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(train_set, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(val_set, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr={lr}, weight_decay=0.01)
)
param_scheduler = dict(
    type='PolyLR', eta_min=0.0, power=1.0, begin=0, end={iterations}, by_epoch=False
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters={iterations}, val_interval={interval})
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval={interval}, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)
"""

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A config for a folder of images: what the model is like, and the text."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from dataclasses import dataclass

from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.families import family_of
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.launch.layouts import HELD_OUT, FolderFacts

#: Maps, each of another block, that a segmentation head is given.
SEGMENTATION_MAPS = 4


@dataclass(frozen=True)
class ModelFacts:
    """What a config must know of a model.

    Attributes:
        name: What ``pretrained`` takes.
        width: Channels of a map.
        native_size: Side, in pixels, of the images that it was trained on; 512 if unknown.
        num_blocks: Its blocks.
        stride: Pixels between two positions of a map.
    """

    name: str
    width: int
    native_size: int
    num_blocks: int
    stride: int


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
    stride = scale * family.patch_size
    return ModelFacts(pretrained, family.width, native, family.num_blocks, stride)


def config_text(data: FolderFacts, model: ModelFacts, recipe: Recipe, command: str) -> str:
    """The config.

    Args:
        data: Data of the folder.
        model: Model of the model.
        recipe: What was chosen.
        command: The command that makes the config, for its first line.
    """
    size = training_size(data.side, model.native_size)
    write = WRITERS[data.task]
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


def split_files(data: FolderFacts, suffix: str) -> tuple[str | None, str | None]:
    """Files that say which images are trained on and which are held out.

    Args:
        data: What the folder holds.
        suffix: Suffix of those that `mmaselect init` writes next to the config.
    """
    if data.splits:
        folder = '{{fileDirname}}/splits'
        return f'{folder}/train.{suffix}', f'{folder}/val.{suffix}'
    return data.lists or (None, None)


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

    def part(images: str, masks: str, listed: str | None) -> str:
        names = '' if listed is None else f', ann_file={listed!r}'
        return (
            f'dict(whole_set, data_prefix=dict(img_path={images!r}, seg_map_path={masks!r}){names})'
        )

    lists = split_files(data, 'txt')
    train = part(data.train, data.masks[0], lists[0])
    val = part(data.val or data.train, data.masks[1] or data.masks[0], lists[1])
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


def _detection_config(data: FolderFacts, model: ModelFacts, recipe: Recipe, size: int) -> str:
    train_boxes, val_boxes = split_files(data, 'json')
    per_epoch = max(1, round(data.count / recipe.batch_size))
    epochs = 12 if recipe.iterations is None else max(1, round(recipe.iterations / per_epoch))
    lr = 1e-4 if recipe.lr is None else recipe.lr
    # As wide as in configs/detection: a small model needs no large detector.
    wide = 64 if model.width < 512 else 256
    # The RoI heads read the strides 4 to 32.
    rescales = [model.stride / stride for stride in (4, 8, 16, 32)]
    if data.has_masks:
        kind, metrics = 'MaskRCNN', ['bbox', 'segm']
        masks = f"""mask_roi_extractor=dict(out_channels={wide}),
        mask_head=dict(in_channels={wide}, conv_out_channels={wide}, num_classes=len(classes)),"""
    else:
        kind, metrics = 'FasterRCNN', ['bbox']
        masks = 'mask_roi_extractor=None,\n        mask_head=None,'

    def part(boxes: str | None, images: str) -> str:
        return f'dict(whole_set, ann_file={boxes!r}, data_prefix=dict(img={f"{images}/"!r}))'

    loads = f'with_bbox=True, with_mask={data.has_masks}'
    warmup = min(500, epochs * per_epoch // 4 + 1)
    return f"""# `mmaselect train` finds these bases; a script of yours imports mmaselect first.
_base_ = [
    'mmaselect::_base_/heads/mask_rcnn.py',
    'mmaselect::_base_/schedules/det_12e.py',
    'mmaselect::_base_/default_runtime_det.py',
]
classes = {_names(data.classes)}
whole_set = dict(
    type='CocoDataset', data_root={str(data.root.resolve())!r}, metainfo=dict(classes=classes)
)
train_set = {part(train_boxes, data.train)}
val_set = {part(val_boxes, data.val or data.train)}
model = dict(
    type={kind!r},
    data_preprocessor=dict(pad_mask={data.has_masks}),
    backbone={_backbone(model, size)},
    # The maps' stride is {model.stride}. Levels 4, 8, 16 and 32 are made of it, 64 of the last.
    neck=[
        dict(type='mmaselect.BatchNormNeck', in_channels=[{model.width}]),
        dict(
            type='mmaselect.SimpleFeaturePyramid',
            in_channels={model.width},
            out_channels={wide},
            rescales={rescales},
            num_outs=5,
        ),
    ],
    rpn_head=dict(in_channels={wide}, feat_channels={wide}),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels={wide}),
        bbox_head=dict(
            in_channels={wide}, fc_out_channels={4 * wide}, num_classes=len(classes)
        ),
        {masks}
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', {loads}),
    dict(type='Resize', scale=({size}, {size}), keep_ratio=True),
    # Leave it out where left and right differ, as in letters.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({size}, {size}), keep_ratio=True),
    # After `Resize`: the annotations keep their size, and predictions are scaled back to it.
    dict(type='LoadAnnotations', {loads}),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size={recipe.batch_size},
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        train_set, filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(val_set, test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file={_evaluated(data, val_boxes)!r}, metric={metrics}
)
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr={lr}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={warmup}),
    dict(type='CosineAnnealingLR', T_max={epochs}, end={epochs}, by_epoch=True,
         convert_to_iter_based=True),
]
train_cfg = dict(max_epochs={epochs}, val_interval=1)
randomness = dict(seed=0)
"""


def _evaluated(data: FolderFacts, boxes: str | None) -> str:
    """The file of boxes as the metric takes it, which knows no ``data_root``."""
    return str(boxes) if data.splits else str((data.root / str(boxes)).resolve())


#: What writes the config of a task.
WRITERS = dict(
    classification=_classification_config,
    segmentation=_segmentation_config,
    detection=_detection_config,
)

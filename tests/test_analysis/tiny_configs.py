# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Configs of both toolboxes on images made here: stripes to classify, edges to segment."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSIFICATION = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmaselect'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(
        type='mmaselect.ASelecTDiT', pretrained='{pretrained}', blocks=[1], feature='query',
        selection=dict(timesteps='0,200,900', num_images=8),
        calibration=dict(type='CustomDataset', data_root='{root}', data_prefix='train')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root='{root}', data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='{root}', data_prefix='test', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = [dict(type='mmaselect.SelectionHook')]
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

SEGMENTATION = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmaselect'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True,
        size=(32, 32)),
    backbone=dict(
        type='mmaselect.ASelecTDiT', pretrained='{pretrained}', blocks=[1], feature='query',
        selection=dict(num_images=4)),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, num_classes=3),
    test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')]
data = dict(
    type='BaseSegDataset', data_root='{root}', reduce_zero_label=True,
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[0, 0, 9], [0, 9, 0], [9, 0, 0]]),
    img_suffix='.png', seg_map_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=data, sampler=dict(type='InfiniteSampler'))
val_dataloader = dict(
    batch_size=1, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler'))
"""


def write_classification(root: Path, pretrained: str) -> Path:
    """Three classes, 12 training and 8 test images each: stripes, columns and flat gray."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((32, 32))
    patterns = {'columns': columns // 4 % 2, 'flat': np.full((32, 32), 0.5), 'rows': rows // 4 % 2}
    for split, count in (('train', 12), ('test', 8)):
        for name, pattern in patterns.items():
            folder = root / 'stripes' / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = 50 + 120 * pattern[..., None] + rng.integers(0, 60, (32, 32, 3))
                Image.fromarray(image.astype(np.uint8)).save(folder / f'{number}.png')
    path = root / 'tiny_cls.py'
    text = CLASSIFICATION.replace('{pretrained}', pretrained)
    path.write_text(text.replace('{root}', (root / 'stripes').as_posix()))
    return path


def write_segmentation(root: Path, pretrained: str) -> Path:
    """Eight images of 36 x 40: a dark and a bright side; on disk 1 and 2, and 0 along the edge."""
    rng = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / 'edges' / folder).mkdir(parents=True)
    for number in range(8):
        edge = rng.integers(12, 28)
        labels = np.where(np.arange(40) < edge, 1, 2)
        labels[edge] = 0
        labels = np.tile(labels, (36, 1)).astype(np.uint8)
        image = np.where(labels == 1, 40, 180)[..., None] + rng.integers(0, 40, (36, 40, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / f'edges/images/{number}.png')
        Image.fromarray(labels).save(root / f'edges/labels/{number}.png')
    path = root / 'tiny_seg.py'
    text = SEGMENTATION.replace('{pretrained}', pretrained)
    path.write_text(text.replace('{root}', (root / 'edges').as_posix()))
    return path

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A small data set in COCO's format: real handwritten digits on canvases, with boxes and masks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Parts of the data set, by what is in their names.
PARTS = ('train', 'val')


def save_coco_digits(
    folder: Path,
    images: dict[str, int],
    side: int = 128,
    digits: tuple[int, ...] = (0, 1, 4, 7),
    seed: int = 0,
) -> list[str]:
    """Write ``{part}/*.png`` and ``annotations/{part}.json``; return the names of the classes.

    One to three of scikit-learn's digits, enlarged to a quarter to a half of the side, lie on each
    canvas without overlap, bright on dark noise. Parts share no digit.

    Args:
        folder: Where to write.
        images: Number of images of each part.
        side: Side of the canvases, in pixels.
        digits: Which ones; the classes, in this order.
        seed: Seed of everything.
    """
    from pycocotools import mask as coco_mask
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    bunch = load_digits()
    names = [f'digit {digit}' for digit in digits]
    (folder / 'annotations').mkdir(parents=True)
    for place, (part, count) in enumerate(images.items()):
        (folder / part).mkdir()
        entries, annotations = [], []
        for number in range(count):
            canvas = rng.normal(30, 10, (side, side, 3))
            taken = np.zeros((side, side), bool)
            for _ in range(rng.integers(1, 4)):
                category = int(rng.integers(len(digits)))
                choices = np.flatnonzero(bunch.target == digits[category])[place :: len(images)]
                size = int(rng.integers(side // 4, side // 2))
                small = (bunch.images[rng.choice(choices)] * 15.9).astype(np.uint8)
                drawn = np.asarray(Image.fromarray(small).resize((size, size), 3)) / 255.0
                top, left = rng.integers(0, side - size, 2)
                spot = np.s_[top : top + size, left : left + size]
                if taken[spot].any():
                    continue
                taken[spot] = True
                canvas[spot] += drawn[..., None] * rng.uniform(150, 220, 3)
                mask = np.zeros((side, side), np.uint8, order='F')
                mask[spot] = drawn > 0.35
                runs = coco_mask.encode(mask)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=category + 1,
                        bbox=coco_mask.toBbox(runs).tolist(),
                        area=int(mask.sum()),
                        segmentation=dict(size=[side, side], counts=runs['counts'].decode()),
                        iscrowd=0,
                    )
                )
            name = f'{number:04d}.png'
            Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(folder / part / name)
            entries.append(dict(id=number, file_name=name, width=side, height=side))
        content = dict(
            images=entries,
            annotations=annotations,
            categories=[dict(id=n + 1, name=name) for n, name in enumerate(names)],
        )
        (folder / 'annotations' / f'{part}.json').write_text(json.dumps(content))
    return names


#: A child of the config for small models, for that data set.
CHILD_CONFIG = """
_base_ = '{base}'
classes = {classes}
pipelines = dict(
    train=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='RandomFlip', prob=0.0),
        dict(type='PackDetInputs'),
    ],
    val=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs',
             meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ],
)
pipelines['val'].insert(1, dict(type='Resize', scale=({side}, {side}), keep_ratio=True))
parts = dict()
for part in ('train', 'val'):
    parts[part] = dict(
        data_root='{root}', ann_file='annotations/' + part + '.json',
        data_prefix=dict(img=part + '/'), metainfo=dict(classes=classes),
        pipeline=pipelines[part])
del part
model = dict(
    backbone=dict(
        calibration=dict(
            data_root='{root}', ann_file='annotations/train.json', data_prefix=dict(img='train/'),
            metainfo=dict(classes=classes)),
        selection=dict(image_size={side}, num_images=16, timesteps='0:400:50')),
    roi_head=dict(bbox_head=dict(num_classes={count}), mask_head=dict(num_classes={count})))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=parts['train'])
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=parts['val'])
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{root}/annotations/val.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20)]
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
randomness = dict(seed=0)
"""


def write_child_config(
    path: Path, base: Path, root: Path, classes: list[str], side: int, epochs: int
) -> None:
    """Write :data:`CHILD_CONFIG`, filled in."""
    text = CHILD_CONFIG.format(
        base=base, root=root, classes=classes, count=len(classes), side=side, epochs=epochs
    )
    path.write_text(text, encoding='utf-8')

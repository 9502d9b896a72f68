# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# CIFAR-10, downloaded by MMPretrain, enlarged to the size that DiT-XL/2-256 was trained at.
_base_ = './cifar10_32.py'
train_pipeline = [
    dict(type='Resize', scale=256, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=256, interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, num_workers=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Stanford Dogs, from http://vision.stanford.edu/aditya86/ImageNetDogs/: 120 breeds.
dataset_type = 'mmaselect.StanfordDogs'
data_root = 'data/stanford_dogs'
num_classes = 120
data_preprocessor = dict(
    num_classes=num_classes, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=576, edge='short', interpolation='bicubic'),
    dict(type='RandomCrop', crop_size=512),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=576, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=512),
    dict(type='PackInputs'),
]
# A tenth of the 12,000 training images is held out for validation; 8,580 are to test on.
train_set = dict(
    type='mmaselect.HoldOut',
    part='train',
    num_val=0.1,
    dataset=dict(type=dataset_type, data_root=data_root, split='train'),
)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = train_set
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(train_set, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(train_set, part='val', pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='test', pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

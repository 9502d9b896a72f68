# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# CUB-200-2011, from https://www.vision.caltech.edu/datasets/cub_200_2011/: 200 birds.
_base_ = './fine_grained_512.py'
dataset_type = 'CUB'
data_root = 'data/CUB_200_2011'
num_classes = 200
data_preprocessor = dict(num_classes=num_classes)
# The split of A-SelecT's reference: 5,394 to train on, 600 for validation, 5,794 to test on.
train_set = dict(
    type='mmaselect.HoldOut',
    part='train',
    num_val=600,
    dataset=dict(type=dataset_type, data_root=data_root, split='train'),
)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = train_set
train_dataloader = dict(dataset=train_set)
val_dataloader = dict(dataset=dict(train_set, part='val'))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='test'))

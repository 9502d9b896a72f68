# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Oxford Flowers, from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/: 102 kinds,
# in the official split of 1,020 training, 1,020 validation and 6,149 test images.
_base_ = './fine_grained_512.py'
dataset_type = 'Flowers102'
data_root = 'data/Flowers102'
num_classes = 102
data_preprocessor = dict(num_classes=num_classes)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = dict(type=dataset_type, data_root=data_root, split='train')
train_dataloader = dict(dataset=calibration)
val_dataloader = dict(dataset=dict(calibration, split='val'))
test_dataloader = dict(dataset=dict(calibration, split='test'))

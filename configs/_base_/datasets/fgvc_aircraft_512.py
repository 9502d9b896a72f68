# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# FGVC-Aircraft, from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/: 100 variants,
# in the official split of 3,334 training, 3,333 validation and 3,333 test images.
_base_ = './fine_grained_512.py'
dataset_type = 'FGVCAircraft'
data_root = 'data/fgvc-aircraft-2013b'
num_classes = 100
data_preprocessor = dict(num_classes=num_classes)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = dict(type=dataset_type, data_root=data_root, split='train')
train_dataloader = dict(dataset=calibration)
val_dataloader = dict(dataset=dict(calibration, split='val'))
test_dataloader = dict(dataset=dict(calibration, split='test'))

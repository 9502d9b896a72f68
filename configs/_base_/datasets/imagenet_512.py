# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# ImageNet-1k, from https://www.image-net.org, at 512 pixels, cropped as the fine-grained sets are.
_base_ = './fine_grained_512.py'
dataset_type = 'ImageNet'
data_root = 'data/imagenet'
num_classes = 1000
data_preprocessor = dict(num_classes=num_classes)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = dict(type=dataset_type, data_root=data_root, split='train')
train_dataloader = dict(batch_size=32, num_workers=8, dataset=calibration)
val_dataloader = dict(num_workers=8, dataset=dict(calibration, split='val'))
test_dataloader = val_dataloader

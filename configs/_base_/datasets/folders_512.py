# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A folder of images, a sub-folder for each class: data/custom/{train,val}/<class>/*.jpg, or .png.
_base_ = './fine_grained_512.py'
dataset_type = 'CustomDataset'
data_root = 'data/custom'
# The names of the sub-folders, in alphabetical order: edit these.
classes = ['cat', 'dog']
num_classes = len(classes)
data_preprocessor = dict(num_classes=num_classes)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = dict(type=dataset_type, data_root=data_root, data_prefix='train')
train_set = dict(calibration, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=train_set)
val_dataloader = dict(dataset=dict(train_set, data_prefix='val'))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Stanford Dogs, from http://vision.stanford.edu/aditya86/ImageNetDogs/: 120 breeds.
_base_ = './fine_grained_512.py'
dataset_type = 'mmaselect.StanfordDogs'
data_root = 'data/stanford_dogs'
num_classes = 120
data_preprocessor = dict(num_classes=num_classes)
# A tenth of the 12,000 training images is held out for validation; 8,580 are to test on.
train_set = dict(
    type='mmaselect.HoldOut',
    part='train',
    num_val=0.1,
    dataset=dict(type=dataset_type, data_root=data_root, split='train'),
)
# Where the backbone's timestep is picked: the training images, labels unused.
calibration = train_set
train_dataloader = dict(dataset=train_set)
val_dataloader = dict(dataset=dict(train_set, part='val'))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='test'))

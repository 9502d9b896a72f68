# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Stanford Cars, from https://ai.stanford.edu/~jkrause/cars/car_dataset.html: 196 models of cars.
_base_ = './fine_grained_512.py'
dataset_type = 'StanfordCars'
data_root = 'data/Stanford_Cars'
num_classes = 196
data_preprocessor = dict(num_classes=num_classes)
# A tenth of the 8,144 training images is held out for validation; 8,041 are to test on.
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

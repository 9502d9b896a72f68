# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Tell apart nine photographs that are cut into one another along handwritten digits: a small
# segmentor on the DiT that ships with the package, at the timestep that A-SelecT picks. Needs
# nothing but pip packages, and minutes on two CPU cores.
_base_ = ['../_base_/default_runtime_seg.py']
train_set = dict(type='mmaselect.PhotoCollageDataset', split='train', num_collages=2000)
pipeline = [dict(type='LoadImageFromNDArray'), dict(type='PackSegInputs')]
test_pipeline = pipeline  # the name under which mmseg.apis looks for it
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64),
    ),
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='mmaselect://dit_cifar10',
        blocks=[3],
        feature='query',
        timestep='auto',
        # The collages are in memory, as BGR, which is what MMSegmentation's images are.
        selection=dict(array_order='bgr', image_size=64, num_images=32, timesteps='0:1000:50'),
        calibration=train_set,
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=224,
        channels=64,
        num_convs=2,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=9,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(train_set, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmaselect.PhotoCollageDataset', split='val', num_collages=200, pipeline=pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01))
param_scheduler = dict(type='OneCycleLR', eta_max=3e-3, total_steps=300, by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=300)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=300),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)

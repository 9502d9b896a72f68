# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Find handwritten digits in noise: a small segmentor on the DiT of digits that ships with the
# package, read where A-SelecT's score is highest. Needs nothing but pip packages, and minutes on
# two CPU cores. `tools/demo.py` compares it with the usual place at t = 0.
_base_ = ['../_base_/default_runtime_seg.py']
train_set = dict(type='mmaselect.NoisyDigitsDataset', split='train', num_canvases=1500)
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
        size=(56, 56),
    ),
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='mmaselect://dit_digits',
        blocks='auto',
        feature='auto',
        timestep='auto',
        # The canvases are in memory, as BGR, which is what MMSegmentation's images are.
        selection=dict(array_order='bgr', num_images=512, timesteps='0:500:50'),
        # Single digits, at the size that the model was trained at; their labels are not used.
        calibration=dict(train_set, side=1),
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=96,
        channels=64,
        num_convs=2,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=10,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=1.0),
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
        type='mmaselect.NoisyDigitsDataset', split='val', num_canvases=150, pipeline=pipeline
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

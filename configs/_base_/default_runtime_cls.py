# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# What every classification config shares.
custom_imports = dict(imports=['mmaselect'], allow_failed_imports=False)
default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # The epoch that does best on the validation images, and the last one, for --resume.
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=1,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds: processes wait while one downloads a model, embeds a prompt or picks a timestep.
    dist_cfg=dict(backend='nccl', timeout=7200),
)
# Where a model has a BatchNorm, it works on a CPU and on one GPU; on several it becomes SyncBN.
sync_bn = 'torch'
# Writes selection.json and selection.png into the work directory, and the curve to the visualizer.
custom_hooks = [dict(type='mmaselect.SelectionHook')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)

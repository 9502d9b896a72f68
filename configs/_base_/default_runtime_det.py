# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# What every detection config shares.
custom_imports = dict(imports=['mmaselect'], allow_failed_imports=False)
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds: processes wait while one downloads a model, embeds a prompt or picks a timestep.
    dist_cfg=dict(backend='nccl', timeout=7200),
)
# Where a model has a BatchNorm, it works on a CPU and on one GPU; on several it becomes SyncBN.
sync_bn = 'torch'
# Writes selection.json and selection.png into the work directory, and the curve to the visualizer.
custom_hooks = [dict(type='mmaselect.SelectionHook')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# What every segmentation config shares.
custom_imports = dict(imports=['mmaselect'], allow_failed_imports=False)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds: processes wait while one downloads a model, embeds a prompt or picks a timestep.
    dist_cfg=dict(backend='nccl', timeout=7200),
)
# BatchNorm of neck and heads works on a CPU and on one GPU; on several GPUs it becomes SyncBN.
sync_bn = 'torch'
# Writes selection.json and selection.png into the work directory, and the curve to the visualizer.
custom_hooks = [dict(type='mmaselect.SelectionHook')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# As for Stable Diffusion 3 medium, with 3.5 medium, whose weights are published in bf16.
_base_ = './aselect_sd3-medium_upernet.py'
model = dict(
    backbone=dict(pretrained='stabilityai/stable-diffusion-3.5-medium', dtype='bf16'),
)

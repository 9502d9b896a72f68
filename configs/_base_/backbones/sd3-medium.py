# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Stable Diffusion 3 medium.
width = 1536
base_backbone = dict(
    type='mmaselect.ASelecTDiT',
    pretrained='stabilityai/stable-diffusion-3-medium-diffusers',
    # Of 24: the reference block. The first 10 blocks are all that is loaded.
    blocks=[9],
    feature='query',
    timestep='auto',
    # The timestep is picked at the size that the heads are trained at.
    selection=dict(image_size=512),
    # The empty prompt, without T5, as in the reference.
    condition=dict(prompt='', t5=False),
    dtype='fp16',
)

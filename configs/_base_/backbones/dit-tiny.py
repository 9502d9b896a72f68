# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The DiT that ships with the package: pixel space, patch 4, six blocks.
width = 224
base_backbone = dict(
    type='mmaselect.ASelecTDiT',
    pretrained='mmaselect://dit_cifar10',
    # Of six; nothing deeper is loaded.
    blocks=[3],
    feature='query',
    timestep='auto',
)

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# DiT-XL/2-512.
width = 1152
base_backbone = dict(
    type='mmaselect.ASelecTDiT',
    pretrained='facebook/DiT-XL-2-512',
    # Of 28: DDAE's linear probes of DiT-XL/2 are best there. Nothing deeper is loaded.
    blocks=[13],
    feature='query',
    timestep='auto',
    dtype='fp16',
)

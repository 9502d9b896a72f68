# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# FLUX.1-dev.
width = 3072
base_backbone = dict(
    type='mmaselect.ASelecTDiT',
    pretrained='black-forest-labs/FLUX.1-dev',
    # Of 57, 19 with two streams and 38 with one: the middle. The reference names none for FLUX.
    blocks=[28],
    feature='query',
    timestep='auto',
    # The timestep is picked at the size that the heads are trained at.
    selection=dict(image_size=512),
    # The empty prompt; FLUX.1 cannot do without T5, which is loaded once, to embed it.
    condition=dict(prompt='', guidance=3.5),
    # As it was trained; its activations come near the end of fp16's range.
    dtype='bf16',
)

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT, two attention blocks around a class token.
# Frozen: FLUX.1-dev.
model = dict(
    type='ImageClassifier',
    backbone=dict(
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
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
        # As it was trained; its activations come near the end of fp16's range.
        dtype='bf16',
    ),
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        num_classes=200,
        in_channels=3072,
        embed_dims=800,
        num_layers=2,
        num_heads=8,
        mlp_ratio=4.0,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)

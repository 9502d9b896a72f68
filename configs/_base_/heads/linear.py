# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A linear probe: average pooling, normalization over the batch, one linear layer. The neck needs
# the width, so the model states it.
model = dict(
    type='ImageClassifier',
    head=dict(
        type='LinearClsHead',
        num_classes=200,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)

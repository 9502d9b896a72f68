# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The smallest segmentor that MMEngine trains."""

import torch
from mmengine.model import BaseModel


class Segmentor(BaseModel):
    """A linear head on the backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Conv2d(16, 2, 1)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[0])
        if mode == 'loss':
            return dict(loss=torch.nn.functional.cross_entropy(logits, labels))
        return logits

    def train_step(self, data, optim_wrapper):
        losses = self(data[0], data[1], mode='loss')
        optim_wrapper.update_params(losses['loss'])
        return losses

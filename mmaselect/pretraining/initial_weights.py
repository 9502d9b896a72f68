# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Starting from the weights of a pipeline, in place of random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

from mmaselect.diffusion.locate import resolve_pretrained
from mmaselect.pretraining.objective import Objective

#: What makes an architecture: its entry in the transformer's config, and the flag that sets it.
_ARCHITECTURE = {
    'in_channels': '--vae, or none',
    'out_channels': '--vae, or none',
    'sample_size': '--size',
    'patch_size': '--patch',
    'num_layers': '--depth',
    'num_attention_heads': '--heads',
    'attention_head_dim': '--width over --heads',
    'num_embeds_ada_norm': 'the number of classes in --data',
}


def load_initial_weights(model: DiTTransformer2DModel, pretrained: str | Path, target: str) -> None:
    """Put the weights of a pipeline into a network of the same architecture.

    Args:
        model: The network; its weights are replaced.
        pretrained: A pipeline's folder (``pipeline/`` or ``snapshot/`` of a run), the hub id of
            one, or ``mmaselect://NAME`` for a model that ships with the package.
        target: What the network is to be trained on, see `Objective`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no DiT, one of another architecture, or one that predicts something
            else than ``target``.
    """
    folder = resolve_pretrained(pretrained)
    config = DiTTransformer2DModel.load_config(folder, subfolder='transformer')
    if config['_class_name'] != 'DiTTransformer2DModel':
        raise ValueError(
            f'--init {pretrained} holds a {config["_class_name"]}; what can be trained on is a '
            'DiTTransformer2DModel'
        )
    different = [
        f'{name} is {config.get(name)} there and {model.config[name]} here ({flag})'
        for name, flag in _ARCHITECTURE.items()
        if config.get(name) != model.config[name]
    ]
    if different:
        raise ValueError(
            f'--init {pretrained} has another architecture: {"; ".join(different)}. Give the flags '
            'that it was trained with'
        )
    before = Objective.from_pipeline(folder).target
    if before != target:
        raise ValueError(
            f'--init {pretrained} predicts {before!r}, and this run trains {target!r}: give '
            f'--target {before}'
        )
    trained = DiTTransformer2DModel.from_pretrained(
        folder, subfolder='transformer', torch_dtype=torch.float32
    )
    model.load_state_dict(trained.state_dict())


def has_other_classes(pretrained: str | Path, classes: Sequence[str]) -> bool:
    """Whether a pipeline says that its labels stood for other classes, or for another order."""
    config = DiTPipeline.load_config(resolve_pretrained(pretrained))
    names = config.get('id2label') or {}
    return bool(names) and [names.get(str(i)) for i in range(len(names))] != list(classes)

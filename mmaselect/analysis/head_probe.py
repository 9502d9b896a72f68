# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A config's own head, trained at each timestep on features that are read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.stats import wilson_interval
from mmaselect.diffusion import TapKey
from mmaselect.openmmlab.registries import MODELS


@dataclass(frozen=True)
class HeadSchedule:
    """How a head is trained.

    The defaults are those of A-SelecT's reference configuration, but for the epochs and the batch,
    which are for features in memory.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate of AdamW at the start; it falls to 0 on a cosine.
        weight_decay: Of AdamW.
        seed: Seed of the weights and of the order of images.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-3
    seed: int = 0


def measure_head(
    config: Mapping[str, Any],
    train: EncodedImages,
    test: EncodedImages,
    timestep: int,
    schedule: HeadSchedule,
) -> list[dict[str, Any]]:
    """Train a classification head at one timestep, and measure it.

    Args:
        config: The model, as an MMPretrain config has it: its ``neck``, if there is one, and its
            ``head`` are built.
        train: Images that it is trained on.
        test: Images that it is measured on.
        timestep: 0 (clean) to T - 1 (noise).
        schedule: How it is trained.

    Returns:
        For each block and feature a row ``block, feature, value, low, high``: accuracy and its
        interval, in percent.
    """
    train_maps, test_maps = _maps(train, timestep), _maps(test, timestep)
    rows = []
    for (block, feature), maps in train_maps.items():
        trained = _train(config, maps, train.labels, schedule, train.dit.device)
        right = 0
        with torch.no_grad():
            pairs = zip(
                test_maps[block, feature].split(schedule.batch_size),
                test.labels.split(schedule.batch_size),
                strict=True,
            )
            for some, labels in pairs:
                predicted = _logits(trained, some.to(train.dit.device)).argmax(1).cpu()
                right += int((predicted == labels).sum())
        low, high = wilson_interval(right, len(test.labels))
        value = 100 * right / len(test.labels)
        rows.append(dict(block=block, feature=feature, value=value, low=100 * low, high=100 * high))
    return rows


def _maps(images: EncodedImages, timestep: int) -> dict[TapKey, Tensor]:
    """Feature maps (N, C, h, w) of all images, on the CPU."""
    parts: dict[TapKey, list[Tensor]] = {tap: [] for tap in images.dit.keys}
    for batch in images.features(timestep):
        for tap, maps in batch.draws[0].items():
            parts[tap].append(maps.cpu())
    return {tap: torch.cat(part) for tap, part in parts.items()}


def _train(
    config: Mapping[str, Any],
    maps: Tensor,
    labels: Tensor,
    schedule: HeadSchedule,
    device: torch.device,
) -> nn.ModuleDict:
    """A neck and a head trained on maps (N, C, h, w) with labels (N,)."""
    from mmpretrain.structures import DataSample

    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        torch.manual_seed(schedule.seed)
        neck = config.get('neck')
        pooling = nn.Identity() if neck is None else MODELS.build(neck)
        head = MODELS.build({**config['head'], 'in_channels': maps.shape[1]})
        # MMEngine would log every parameter of every head.
        head._dump_init_info = lambda: None
        head.init_weights()
        trained = nn.ModuleDict(dict(neck=pooling, head=head)).to(device).train()
        optimizer = torch.optim.AdamW(
            trained.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay
        )
        batches = -(-len(maps) // schedule.batch_size)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs * batches)
        for _ in range(schedule.epochs):
            for chosen in torch.randperm(len(maps)).split(schedule.batch_size):
                samples = [DataSample().set_gt_label(label).to(device) for label in labels[chosen]]
                losses = head.loss(pooling((maps[chosen].float().to(device),)), samples)
                optimizer.zero_grad()
                sum(loss for name, loss in losses.items() if 'loss' in name).backward()
                optimizer.step()
                cosine.step()
    return trained.eval()


def _logits(trained: nn.ModuleDict, maps: Tensor) -> Tensor:
    """Class scores (N, K) of maps (N, C, h, w)."""
    return trained['head'](trained['neck']((maps.float(),)))

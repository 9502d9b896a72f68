# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The transformer, its optimizers and the schedule of their learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel
from diffusers.optimization import SchedulerType, get_scheduler
from torch import nn
from torch.optim import AdamW, Optimizer

OPTIMIZERS = ('adamw', 'muon')
SCHEDULES = (
    'wsd',
    *(
        kind.value
        for kind in (
            SchedulerType.COSINE,
            SchedulerType.LINEAR,
            SchedulerType.CONSTANT_WITH_WARMUP,
        )
    ),
)


def build_dit(
    channels: int, size: int, patch: int, width: int, depth: int, heads: int, num_classes: int
) -> DiTTransformer2DModel:
    """Build an untrained DiT, initialized as its paper has it (adaLN-zero).

    Args:
        channels: Channels of a clean sample.
        size: Side of a clean sample (pixels, or pixels of the latent).
        patch: Side of a token.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        num_classes: Classes; the label of that number is the null class. Without classes, 1: all
            training is then done on the null class.

    Raises:
        ValueError: If patch does not divide size, or heads does not divide width.
    """
    if size % patch:
        fits = [p for p in range(1, size + 1) if size % p == 0]
        raise ValueError(
            f'patch {patch} does not divide the side {size} of a sample: give a --patch of {fits}, '
            'or another --size'
        )
    if width % heads:
        fits = [h for h in range(1, width + 1) if width % h == 0]
        raise ValueError(f'{heads} heads do not divide width {width}: give --heads of {fits}')
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=depth,
        sample_size=size,
        patch_size=patch,
        num_embeds_ada_norm=max(num_classes, 1),
        norm_type='ada_norm_zero',
    )
    for block in model.transformer_blocks:
        labels = block.norm1.emb.class_embedder
        # diffusers would drop 10 % of the labels here, each block others than the next (every block
        # has its own embedder). The trainer drops them once, for all blocks; the table keeps the
        # row of the null class.
        labels.dropout_prob = 0.0
        nn.init.normal_(labels.embedding_table.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for layer in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def build_optimizers(
    model: nn.Module,
    kind: str = 'adamw',
    lr: float = 1e-4,
    muon_lr: float = 4e-3,
    weight_decay: float = 0.01,
) -> list[Optimizer]:
    """Build AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the rest.

    Args:
        model: The transformer.
        kind: 'adamw' or 'muon'.
        lr: Learning rate of AdamW.
        muon_lr: Learning rate of Muon (``torch.optim.Muon``; on a CPU the same in float32), with
            updates scaled to the size that AdamW's have.
        weight_decay: Weight decay of both.

    Raises:
        RuntimeError: If this torch has no Muon.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # Matrices that act on tokens. Embedders and adaLN ('norm1') act once on a sample.
        hidden = 'transformer_blocks' in name and 'norm1' not in name and parameter.ndim == 2
        (matrices if kind == 'muon' and hidden else rest).append(parameter)
    optimizers: list[Optimizer] = [AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)]
    if kind == 'muon':
        if not hasattr(torch.optim, 'Muon'):
            raise RuntimeError(
                f'torch {torch.__version__} has no torch.optim.Muon (it came with 2.9): upgrade '
                'torch, or use --optimizer adamw'
            )
        # Importing this module needs torch.optim.Muon, hence here.
        from mmaselect.pretraining.muon import Float32Muon

        device = matrices[0].device.type
        optimizers.append(
            (Float32Muon if device == 'cpu' else torch.optim.Muon)(
                matrices,
                lr=muon_lr,
                weight_decay=weight_decay,
                momentum=0.95,
                adjust_lr_fn='match_rms_adamw',
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['initial_lr'] = group['lr']
    return optimizers


def build_schedule(
    kind: str, steps: int, warmup_steps: int, decay_steps: int = 0
) -> Callable[[int], float]:
    """The factor of the learning rate, as a function of the step (0 = the first).

    Being a function of the step and of nothing else, it needs no place in a checkpoint, and a
    resumed run may plan its end anew.

    Args:
        kind: One of `SCHEDULES`. 'wsd' is warm-up, constant, linear decay to 0 over the last
            ``decay_steps``; the others are diffusers' own.
        steps: Steps of the whole run.
        warmup_steps: Steps over which the factor rises to 1.
        decay_steps: See 'wsd'.
    """
    if kind == 'wsd':

        def factor(step: int) -> float:
            up = (step + 1) / max(warmup_steps, 1)
            down = (steps - step) / decay_steps if decay_steps else 1.0
            return max(0.0, min(1.0, up, down))

        return factor
    unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (curve,) = get_scheduler(
        kind, unused, num_warmup_steps=warmup_steps, num_training_steps=steps
    ).lr_lambdas
    return lambda step: curve(step + 1)

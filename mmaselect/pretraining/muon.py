# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Muon whose orthogonalization is fast on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor
from torch.optim import Muon


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Bring all singular values of each matrix close to 1, by Newton and Schulz's iteration.

    Args:
        matrices: (N, A, B), float32.
        coefficients: Coefficients of the quintic polynomial a x + b x^3 + c x^5 that is iterated.
        steps: Number of iterations.
        eps: Smallest norm that a matrix is divided by.

    Returns:
        (N, A, B), float32.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Float32Muon(Muon):
    """``torch.optim.Muon`` in float32, all matrices of one shape at once.

    torch's own casts each gradient to bfloat16, which processors without bfloat16 units emulate: on
    such a CPU it took 30 % of a step of a small DiT, and takes 3 % here. State and arguments are
    those of ``torch.optim.Muon``, whose checkpoints it reads. Follows Keller Jordan's description
    (https://kellerjordan.github.io/posts/muon/) and Liu et al. (arXiv 2502.16982) for the scale of
    the update.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, decay, momentum = group['lr'], group['weight_decay'], group['momentum']
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group['params']:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if 'momentum_buffer' not in state:
                    state['momentum_buffer'] = torch.zeros_like(parameter.grad)
                buffer = state['momentum_buffer']
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if group['nesterov'] else buffer
                alike[parameter.shape].append((parameter, update.float()))
            for (rows, columns), pairs in alike.items():
                updates = orthogonalize(
                    torch.stack([update for _, update in pairs]),
                    group['ns_coefficients'],
                    group['ns_steps'],
                    group['eps'],
                )
                # 'match_rms_adamw': the update gets the size that AdamW's have.
                scale = 0.2 * max(rows, columns) ** 0.5
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - lr * decay)
                    parameter.add_(update.to(parameter.dtype), alpha=-lr * scale)
        return loss

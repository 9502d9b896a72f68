# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Reading Q and K as the attention product gets them, after QK norm and rotary embedding, and it.

No submodule of a diffusers attention layer outputs these, so no forward hook can see them. They
are the operands, and the result, of ``torch.nn.functional.scaled_dot_product_attention``, which
torch lets a ``TorchFunctionMode`` watch, and so again nothing of diffusers is patched. The price:
attention backends that call something else (flash-attn, sage, xformers) cannot be watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AttentionOperands(TorchFunctionMode):
    """Hands the operands of the attention product that given modules compute to callbacks.

    A context manager; hooks that :meth:`watch` sets are removed when it is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[Any] = []
        self._running: list[nn.Module] = []
        self._callbacks: dict[nn.Module, list[tuple[str, Callable[[Tensor], None], int]]] = {}
        self._computed: dict[nn.Module, int] = {}

    def watch(
        self,
        module: nn.Module,
        operand: str,
        callback: Callable[[Tensor], None],
        product: int = 0,
    ) -> None:
        """Call ``callback`` with an operand of ``module``'s attention product.

        Args:
            module: An attention layer.
            operand: ``'query'``, ``'key'``, or ``'product'`` for the result.
            callback: Gets (B, N, heads * head channels); may raise to end the pass.
            product: Which product, where the layer computes several in a pass, counted from 0.
        """
        if module not in self._callbacks:
            self._callbacks[module] = []
            self._handles += [
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(lambda m, args, out: self._running.remove(m)),
            ]
        self._callbacks[module].append((operand, callback, product))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        self._computed[module] = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention or not self._running:
            return func(*args, **kwargs)
        module = self._running[-1]
        number = self._computed[module]
        self._computed[module] += 1
        watched = [(o, callback) for o, callback, n in self._callbacks[module] if n == number]
        tensors = dict(zip(('query', 'key'), args, strict=False), **kwargs)
        # Operands first: a callback that ends the pass then saves the product.
        for operand, callback in watched:
            if operand != 'product':
                # (B, heads, N, channels); grouped K has fewer heads than Q.
                callback(tensors[operand].transpose(1, 2).flatten(2))
        product = func(*args, **kwargs)
        for operand, callback in watched:
            if operand == 'product':
                callback(product.transpose(1, 2).flatten(2))
        return product

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*exception)

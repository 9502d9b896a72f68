# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A CUDA device that nobody has: what a run on a GPU would do, on any machine, in no time.

Tensors on the device have a shape, a dtype and a size in memory, but no values
(:class:`torch._subclasses.FakeTensorMode`). Everything on the CPU is computed as always. So a test
sees, without a GPU: tensors of two devices in one operation (PyTorch raises), values that the host
reads, copies between host and device that it waits for, dtypes, and the peak of memory.

    with FakeCuda() as device:
        dit.to('cuda')
        device.forget()
        dit.features(latent, 300, noise)
    assert not device.waits and device.peak < 8 * 2**30
"""

import contextlib
import traceback
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

#: What PyTorch raises where the host would read a value, and there is none to go on with.
READS = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
)


class FusedAttention(TorchFunctionMode):
    """Attention that allocates its result and nothing else, as the fused kernels of a GPU do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args if len(args) == 3 else _operands(*args, **kwargs)
            mixed = len({x.device for x in (query, key, value)}) > 1
            trained = torch.is_grad_enabled() and query.requires_grad
            if query.device.type == 'cuda' and not mixed and not trained:
                assert query.dtype == key.dtype == value.dtype, (query.dtype, key.dtype)
                # Tokens before heads, in memory.
                *first, heads, tokens = query.shape[:-1]
                return value.new_empty(*first, tokens, heads, value.shape[-1]).transpose(-2, -3)
        return func(*args, **kwargs)


def _operands(query, key, value, *args, **kwargs):
    return query, key, value


class FakeCuda(TorchDispatchMode):
    """The device, while it is entered.

    Attributes:
        waits: What the host waits for: copies between host and device, unless they are
            ``non_blocking``, and floats that it reads, which are 0 here; each as (operation, the
            last lines of code on the way to it). What else it reads, or a shape that depends on
            values, is an error (``READS``).
        held: Bytes of tensors on the device.
        peak: The most that it was since :meth:`forget`.
    """

    def __init__(self):
        super().__init__()
        self.fakes = FakeTensorMode()
        self.waits = []
        self.held = self.peak = 0
        self._sizes = {}
        self._entered = None

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(_autocast_without_a_device())
            stack.enter_context(self.fakes)
            stack.enter_context(FusedAttention())
            super().__enter__()
            stack.push(super().__exit__)
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._entered.__exit__(*error)

    def forget(self):
        """Forget waits, and measure the peak from here."""
        self.waits.clear()
        self.peak = self.held

    @contextlib.contextmanager
    def noting_reads(self):
        """One of ``READS`` that is raised within is among ``waits``, too."""
        try:
            yield
        except READS as error:
            self.waits.append((str(error), _where(traceback.extract_tb(error.__traceback__))))
            raise

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
        named = any(isinstance(each, torch.device) and each.type == 'cuda' for each in leaves)
        if not named and not any(isinstance(each, FakeTensor) for each in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            self.waits.append((func.name(), _where()))
            return 0.0
        args, kwargs = tree_map_only(torch.Tensor, self._as_fake, (args, kwargs))
        result = func(*args, **kwargs)
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        is_copy = 'copy' in func.name()
        # A 0-d tensor of the host is an argument of a kernel, unless it is what is copied.
        kinds = {each.device.type for each in tensors if each.ndim or is_copy}
        kinds = (kinds | {each.device.type for each in made}) - {'meta'}
        if len(kinds) > 1 and not kwargs.get('non_blocking'):
            self.waits.append((func.name(), _where()))
        for each in made:
            if each.device.type == 'cuda':
                self._hold(each.untyped_storage())
        return result

    def _as_fake(self, tensor):
        return tensor if isinstance(tensor, FakeTensor) else self.fakes.from_tensor(tensor)

    def _hold(self, storage):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, key)

    def _release(self, key):
        self.held -= self._sizes.pop(key)


@contextlib.contextmanager
def _autocast_without_a_device():
    """``torch.autocast('cuda')`` switches itself off where there is no GPU."""
    common = torch.cuda.amp.common
    switched_off, has_bf16 = common.amp_definitely_not_available, torch.cuda.is_bf16_supported
    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    try:
        yield
    finally:
        common.amp_definitely_not_available = switched_off
        torch.cuda.is_bf16_supported = has_bf16


#: Code that only hands on what others do.
_PASSED_THROUGH = ('/torch/', __file__, 'mmaselect/diffusion/attention.py')


def _where(frames=None):
    """The last lines of code on the way here, without PyTorch's own."""
    lines = [
        f'{frame.filename.rpartition("site-packages/")[2]}:{frame.lineno}'
        for frame in frames or traceback.extract_stack()
        if not any(part in frame.filename for part in _PASSED_THROUGH)
    ]
    return lines[-3:]

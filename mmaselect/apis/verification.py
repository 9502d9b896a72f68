# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What there is to check on the first day with a model's weights, and with an accelerator.

Features are compared with those that plain hooks read from the whole transformer as diffusers loads
it. The test suite has the stronger proof, against the pipelines' own calls, on tiny models.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.apis.features import pick_device
from mmaselect.apis.selection import select_timestep
from mmaselect.diffusion import FrozenDiT, ModelSource, PipelineSource, draw_noise, family_of
from mmaselect.diffusion.families.base import POST_FEATURES
from mmaselect.files import written_aside
from mmaselect.version import __version__

#: Name of the file that a check writes.
FILE = 'verify.json'
#: Largest error of a feature, relative to its norm: a few roundings.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
#: As fractions of the schedule: little noise, and much of it.
_TIMES = (0.137, 0.612)
_ROUNDS = 5


def verify_model(
    model: str | Path | Mapping[str, Any] | ModelSource,
    *,
    images: str | Path | None = None,
    blocks: Sequence[int] | int | None = None,
    dtype: str | torch.dtype = 'auto',
    device: str | torch.device | None = None,
    image_size: int | None = None,
    batch_size: int = 2,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Check a model's features against diffusers, and measure what they cost here.

    Args:
        model: Hub id, local folder, ``mmaselect://NAME``, or a
            :class:`~mmaselect.diffusion.ModelSource`.
        images: Folder of images, on which the default criterion and the paper's are compared.
        blocks: Blocks to compare; first, default and last one if None.
        dtype: As in :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default.
        image_size: Side of the random images, in pixels; the model's own by default.
        batch_size: Images per pass.
        out: Folder for ``verify.json``; nothing is written if None.

    Returns:
        dict: What was found. ``passed`` says whether every feature fits; ``features`` has the
        error of each, relative to its norm; ``seconds``, ``bytes`` and ``tflops`` are measured.

    Raises:
        ValueError: If the model is a file of weights, which diffusers cannot load by itself.
    """
    source = ModelSource.parse(model)
    where = pick_device(device)
    family = family_of(PipelineSource(source))
    if blocks is None:
        blocks = sorted({0, family.default_block, family.num_blocks - 1})
    # What goes into an attention product is not an output of a module, and plain hooks do not see
    # it.
    names = [name for name in family.features if name not in POST_FEATURES]
    ours = FrozenDiT.from_pretrained(source, blocks=blocks, features=names, dtype=dtype).to(where)
    stock = _stock(source, ours.dtype).to(where)
    side = image_size or ours.native_size
    torch.manual_seed(0)
    latent = ours.encode(torch.rand(batch_size, 3, side, side, device=where) * 2 - 1)
    noise = draw_noise(tuple(latent.shape[1:]), list(range(batch_size))).to(where)

    errors: dict[str, float] = {}
    for part in _TIMES:
        timestep = int(part * ours.num_train_timesteps)
        found = ours.features(latent, timestep, noise)
        wanted = _plain(ours, stock, latent, timestep, noise)
        for block, feature in wanted:
            value, reference = found[block, feature], wanted[block, feature].float()
            error = (value.float() - reference).norm() / reference.norm().clamp_min(1e-30)
            errors[f't={timestep} block {block} {feature}'] = float(error)

    # What one default block costs, against the whole model with a hook on it.
    one = FrozenDiT.from_pretrained(source, dtype=dtype).to(where)
    timestep = int(_TIMES[0] * one.num_train_timesteps)
    seconds = _timed(lambda: one.features(latent, timestep, noise), where)
    whole = _timed(lambda: _plain(one, stock, latent, timestep, noise), where)
    with FlopCounterMode(display=False) as counter:
        one.features(latent, timestep, noise)
    flops = counter.get_total_flops()
    product = _product_tflops(one.dtype, where)
    tolerance = TOLERANCES[ours.dtype]
    result: dict[str, Any] = {
        'model': str(source),
        'passed': all(error <= tolerance for error in errors.values()),
        'tolerance': tolerance,
        'features': errors,
        # Operands and results of attention products: the test suite compares them.
        'not_compared': [
            f'block {block} {name}' for block, name in found if (block, name) not in wanted
        ],
        'dtype': str(ours.dtype).removeprefix('torch.'),
        'image_size': side,
        'batch_size': batch_size,
        'block': one.blocks[0],
        'seconds': {'features': seconds, 'whole_transformer': whole},
        'bytes': {'features': _bytes(one.transformer), 'whole_transformer': _bytes(stock)},
        'tflops': {
            'features': flops / seconds / 1e12,
            'matrix_product': product,
            'utilization': flops / seconds / 1e12 / product,
        },
        'device': torch.cuda.get_device_name(where) if where.type == 'cuda' else _processor(),
        'versions': {
            'mmaselect': __version__,
            'torch': torch.__version__,
            'diffusers': diffusers.__version__,
        },
    }
    if where.type == 'cuda':
        result['bytes']['peak'] = torch.cuda.max_memory_allocated(where)
    if images is not None:
        result['selection'] = {
            name: _select(one, images, preset)
            for name, preset in (('default', None), ('paper', 'paper'))
        }
    if out is not None:
        with written_aside(Path(out) / FILE) as aside:
            aside.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return result


def verified_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown of what :func:`verify_model` found; a sentence if there is nothing."""
    if not results:
        return 'No `verify.json` has been handed in yet: no published model was verified.\n'
    lines = [
        '| model | device | features | largest error | speed-up | weights | utilization |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for each in results:
        seconds, size = each['seconds'], each['bytes']
        lines.append(
            f'| {each["model"]} | {each["device"]}, {each["dtype"]}, {each["image_size"]} px | '
            f'{"equal" if each["passed"] else "**different**"} | '
            f'{max(each["features"].values()):.1e} | '
            f'{seconds["whole_transformer"] / seconds["features"]:.2f} | '
            f'{size["features"] / 1e9:.2f} of {size["whole_transformer"] / 1e9:.2f} GB | '
            f'{each["tflops"]["utilization"]:.0%} |'
        )
    return '\n'.join(lines) + '\n'


def _stock(source: ModelSource, dtype: torch.dtype) -> nn.Module:
    """The whole transformer as diffusers loads it."""
    opened = PipelineSource(source)
    if opened.file is not None or source.loras:
        raise ValueError(
            f'pretrained={opened.name!r} cannot be verified: features are compared with those of '
            f'a transformer that diffusers loads by itself, from a pipeline or a folder'
        )
    part = opened.part('transformer')
    part.fetch()
    cls = getattr(diffusers, part.config()['_class_name'])
    if cls is diffusers.Transformer2DModel:  # the legacy name of published DiTs
        cls = diffusers.DiTTransformer2DModel
    return cls.from_pretrained(part.folder, torch_dtype=dtype, variant=source.variant).eval()


@torch.no_grad()
def _plain(
    dit: FrozenDiT, stock: nn.Module, latent: Tensor, timestep: int, noise: Tensor
) -> dict[tuple[int, str], Tensor]:
    """Features by plain hooks in a complete forward pass of the stock transformer.

    Features that are not the output of a module, as plain hooks see it, are left out.
    """
    family, batch = dit.family, len(latent)
    grid = family.grid(latent)
    level = dit.process.at(timestep, num_tokens=grid[0] * grid[1])
    noisy = dit.process.add_noise(latent.float(), noise.float(), level).to(dit.dtype)
    condition = {
        name.removeprefix('condition_'): value.repeat_interleave(batch, dim=0)
        for name, value in dit.named_buffers()
        if name.startswith('condition_')
    }
    moment = torch.full((batch,), level.model_time, dtype=torch.float32, device=latent.device)
    found: dict[tuple[int, str], Tensor] = {}
    handles = []
    for key in dit.keys:
        tap = family.tap(stock, *key)
        if tap.operand is not None:
            continue
        handles.append(
            tap.module.register_forward_hook(
                lambda module, args, output, key=key, tap=tap: found.update(
                    {key: family.to_map(tap.tokens(output, grid), grid)}
                )
            )
        )
    try:
        family.run(stock, noisy, moment, condition)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    """Median of the seconds that a call takes."""
    found = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def _product_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of a square matrix product: what this device can do."""
    side = 8192 if device.type == 'cuda' else 768
    one = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _timed(lambda: one @ one, device) / 1e12


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.parameters())


def _processor() -> str:
    return platform.processor() or platform.machine()


def _select(dit: FrozenDiT, images: str | Path, preset: str | None) -> dict[str, Any]:
    """A selection with its curve and what it took, without the cache."""
    started = time.perf_counter()
    result = select_timestep(dit, images, selection=preset, cache=False, progress=False)
    curve = [(point.timestep, point.score) for point in result.curve.points]
    return {
        'criterion': result.criterion,
        'timestep': result.timestep,
        'num_images': result.num_images,
        'seconds': time.perf_counter() - started,
        'curve': curve,
    }

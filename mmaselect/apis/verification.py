# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What there is to check on the first day with a model's weights, and with an accelerator.

Features are compared with those that plain hooks read while diffusers' own pipeline makes an image.
Where its call cannot be compared, they are read from the whole transformer as diffusers loads it,
with the inputs that we give it.
"""

from __future__ import annotations

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

from mmaselect.apis.pipeline_call import CallFindings, compare_call, open_pipeline
from mmaselect.apis.selection import select_timestep
from mmaselect.checks import choice
from mmaselect.diffusion import FrozenDiT, ModelSource, PipelineSource, draw_noise, family_of
from mmaselect.diffusion.devices import pick_device
from mmaselect.diffusion.families.base import POST_FEATURES
from mmaselect.files import write_json
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
    against: str = 'auto',
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
        against: ``'pipeline'`` for the pipeline's own call, ``'transformer'`` for the whole
            transformer alone (which loads no text encoders), or ``'auto'``: the latter where the
            call cannot be compared, and the result says why.
        out: Folder for ``verify.json``; nothing is written if None.

    Returns:
        dict: What was found. ``passed`` says whether every feature fits, and every input that the
        pipeline gives its transformer; ``features`` and ``inputs`` have the error of each, relative
        to its norm; ``seconds``, ``bytes`` and ``tflops`` are measured.

    Raises:
        ValueError: If the model is a file of weights, which diffusers cannot load by itself; or if
            the pipeline is asked for, and its call cannot be compared.
    """
    choice('against', against, ('auto', 'pipeline', 'transformer'))
    source = ModelSource.parse(model)
    where = pick_device(device)
    family = family_of(PipelineSource(source))
    if blocks is None:
        blocks = sorted({0, family.default_block, family.num_blocks - 1})
    # What goes into an attention product is not an output of a module, and plain hooks do not see
    # it.
    names = [name for name in family.features if name not in POST_FEATURES]
    ours = FrozenDiT.from_pretrained(source, blocks=blocks, feature=names, dtype=dtype).to(where)
    stock = _stock(source, ours.dtype).to(where)
    side = image_size or ours.native_size
    torch.manual_seed(0)
    latent = ours.encode(torch.rand(batch_size, 3, side, side, device=where) * 2 - 1)
    noise = draw_noise(tuple(latent.shape[1:]), list(range(batch_size))).to(where)

    timesteps = [int(part * ours.num_train_timesteps) for part in _TIMES]
    calls: dict[int, CallFindings] = {}
    compared = 'the whole transformer (it was asked for)'
    if against != 'transformer':
        try:
            pipeline = open_pipeline(PipelineSource(source), stock, ours.dtype)
            calls = {t: compare_call(pipeline, ours, t, side, batch_size) for t in timesteps}
            compared = f'the call of {type(pipeline).__name__}'
            del pipeline  # its text encoders may be larger than all else
        except Exception as error:  # whatever a pipeline of diffusers may raise
            reason = f'{type(error).__name__}: {error}'
            if against == 'pipeline':
                raise ValueError(
                    f'the call of the pipeline of {source} cannot be compared ({reason}): try '
                    f"against='transformer'"
                ) from error
            compared = f'the whole transformer ({reason})'
    if not calls:
        calls = {t: _whole_transformer(ours, stock, latent, t, noise) for t in timesteps}

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
        'passed': all(
            not call.wrong and all(error <= tolerance for error in call.features.values())
            for call in calls.values()
        ),
        'against': compared,
        'tolerance': tolerance,
        'features': {
            f't={timestep} block {block} {feature}': error
            for timestep, call in calls.items()
            for (block, feature), error in call.features.items()
        },
        'inputs': {
            f't={timestep} {name}': error
            for timestep, call in calls.items()
            for name, error in call.inputs.items()
        },
        'wrong_inputs': sorted({name for call in calls.values() for name in call.wrong}),
        # What one step of the pipeline could not be made to have, so that ours was put there.
        'given_inputs': sorted({name for call in calls.values() for name in call.given}),
        # Operands and results of attention products: the test suite compares them.
        'not_compared': sorted(
            {f'block {block} {name}' for call in calls.values() for block, name in call.left_out}
        ),
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
        write_json(Path(out) / FILE, result)
    return result


def verified_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables in Markdown of what :func:`verify_model` found; a sentence if there is nothing."""
    if not results:
        return 'No `verify.json` has been handed in yet: no published model was verified.\n'
    lines = [
        '| model | device | compared with | features | largest error | speed-up | weights | '
        'utilization |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for each in results:
        seconds, size = each['seconds'], each['bytes']
        lines.append(
            f'| {each["model"]} | {each["device"]}, {each["dtype"]}, {each["image_size"]} px | '
            f'{each["against"].partition(" (")[0]} | '
            f'{"equal" if each["passed"] else "**different**"} | '
            f'{max(each["features"].values()):.1e} | '
            f'{seconds["whole_transformer"] / seconds["features"]:.2f} | '
            f'{size["features"] / 1e9:.2f} of {size["whole_transformer"] / 1e9:.2f} GB | '
            f'{each["tflops"]["utilization"]:.0%} |'
        )
    picks = [
        f'| {each["model"]} | {found["criterion"]} | {found["timestep"]} | {found["num_images"]} | '
        f'{found["seconds"]:.1f} | '
        + (f'{found["probe"]["accuracy"]:.1f} |' if 'probe' in found else 'no labels |')
        for each in results
        for found in each.get('selection', {}).values()
    ]
    if picks:
        lines += [
            '',
            '| model | criterion | picked timestep | images | seconds | linear probe there (%) |',
            '| --- | --- | --- | --- | --- | --- |',
            *picks,
        ]
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


def _whole_transformer(
    dit: FrozenDiT, stock: nn.Module, latent: Tensor, timestep: int, noise: Tensor
) -> CallFindings:
    """Compare features with those of the stock transformer, given the same inputs."""
    found, wanted = (
        dit.features(latent, timestep, noise),
        _plain(dit, stock, latent, timestep, noise),
    )
    findings = CallFindings(left_out=[key for key in found if key not in wanted])
    for key, value in wanted.items():
        error = (found[key].float() - value.float()).norm() / value.float().norm().clamp_min(1e-30)
        findings.features[key] = float(error)
    return findings


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

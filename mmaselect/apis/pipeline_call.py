# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a stock pipeline gives its transformer, and what plain hooks read there.

The pipeline of diffusers makes an image by its own ``__call__``: it draws the noise, embeds the
prompt, computes time, masks and positions, and calls its transformer. The call ends after that.
Inputs of the transformer are compared with ours, and so are features.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from mmaselect.diffusion import FrozenDiT, PipelineSource, TapKey, family_of
from mmaselect.diffusion.families.base import Tap
from mmaselect.diffusion.families.text import LEFT_OUT, TextFamily
from mmaselect.diffusion.process import DDPMProcess, FlowMatchingProcess

#: Largest difference of an input, relative to its norm: a prompt that is embedded on another device
#: is rounded otherwise.
INPUT_TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
#: What a call is told, of those of these arguments that a pipeline has: one step, no guidance, the
#: image's size as it is.
_SETTINGS: dict[str, Any] = {
    'prompt': '',
    'num_inference_steps': 1,
    'output_type': 'latent',
    'use_resolution_binning': False,
    'complex_human_instruction': None,
    'enable_prompt_rewrite': False,
    'num_frames': 1,
    'sample_audio': False,
    'true_cfg_scale': 1.0,
}
#: Pipelines that need more, or that the noise or the time of one step cannot be given to. In those
#: places ours are put; the test suite compares them by whole runs of the samplers.
_CALLS: dict[str, dict[str, Any]] = {
    'BriaFiboPipeline': dict(time=None),
    'BriaPipeline': dict(time=None),
    'CogView4Pipeline': dict(time='timesteps'),
    'Flux2KleinPipeline': dict(time=None),
    'Flux2Pipeline': dict(time=None),
    'Kandinsky6TI2VAPipeline': dict(latent=None),
    # The empty prompt as we read it is that of guidance, which the second call has.
    'Lumina2Pipeline': dict(settings=dict(guidance_scale=4.0, negative_prompt=''), calls=2),
    # Its table of positions is longer than what is looked up.
    'LuminaPipeline': dict(unlike=('image_rotary_emb',)),
    'PRXPixelPipeline': dict(latent=None),
}
#: Why the call of a pipeline is not compared.
_NOT_CALLED = {
    'OmniGenPipeline': 'it runs the prompt and guidance in one sequence of rows',
}
_COUNTS = ('num_images_per_prompt', 'num_videos_per_prompt')
_TIMES = ('timestep', 'timesteps')


class _Read(Exception):
    """Ends the pipeline's call: its transformer has run."""


@dataclass
class CallFindings:
    """What a pipeline's call and ours have in common.

    Attributes:
        inputs: Difference of each input of the transformer, relative to its norm.
        wrong: Names of those that differ by more than rounding.
        given: Names of inputs that the call could not be made to have by itself, so that ours were
            put in their place.
        features: Difference of each feature, relative to its norm.
        left_out: (block, feature) that plain hooks do not see.
    """

    inputs: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    features: dict[TapKey, float] = field(default_factory=dict)
    left_out: list[TapKey] = field(default_factory=list)


def open_pipeline(source: PipelineSource, stock: nn.Module, dtype: torch.dtype) -> Any:
    """The pipeline as diffusers loads it, around a transformer that is loaded already.

    Args:
        source: The model.
        stock: Its transformer, as diffusers loads it.
        dtype: Precision of the other parts.

    Raises:
        ValueError: If the model is put together from several places, or the pipeline's call does
            something else.
    """
    if source.base is not None or source.source.vae is not None:
        raise ValueError('the model is put together from several places')
    index = source.index()
    if index.get('_class_name') in _NOT_CALLED:
        raise ValueError(_NOT_CALLED[str(index['_class_name'])])
    parts = {name: value[0] for name, value in index.items() if isinstance(value, list)}
    folder = source.folder([name for name in parts if parts[name] and name != 'transformer'])
    absent: dict[str, Any] = {name: None for name in parts if not parts[name]}
    family = family_of(source)
    if isinstance(family, TextFamily):  # what its prompt is embedded without
        without = family.pipeline_parts(source, family.parse_condition(None)[1])
        absent |= {name: part for name, part in without.items() if name not in LEFT_OUT}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), **absent, transformer=stock, torch_dtype=dtype
    )
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline.to(stock.device)
    except torch.OutOfMemoryError:
        pipeline.enable_model_cpu_offload(device=stock.device)
        return pipeline


@torch.no_grad()
def compare_call(
    pipeline: Any, dit: FrozenDiT, timestep: int, side: int, batch: int
) -> CallFindings:
    """Compare a call of a pipeline with a pass of ours.

    Args:
        pipeline: What :func:`open_pipeline` returned.
        dit: Ours, with the blocks and features to compare.
        timestep: Where both read, of the unshifted schedule.
        side: Side of the images, in pixels.
        batch: How many.

    Raises:
        ValueError: If the pipeline makes no images of that size.
    """
    settings, is_timed = _settings(pipeline, dit, timestep, side, batch)
    shape = dit.encode(torch.zeros(batch, 3, side, side, device=dit.device)).shape
    theirs, _, _ = _call(pipeline, dit, settings, batch, {}, shape, ())
    latent = next(iter(theirs))
    known = _CALLS.get(type(pipeline).__name__, {})
    is_started = known.get('latent', latent) is not None
    time = next((name for name in _TIMES if name in theirs), None)

    # The start: the noise that the pipeline draws, in either precision, or one of ours.
    starts = [_start(shape, dtype, dit) for dtype in dict.fromkeys((dit.dtype, torch.float32))]
    ours = [_ours(dit, start, timestep) for start in starts]
    errors = [_difference(theirs[latent], inputs.get(latent), batch) for inputs, _ in ours]
    best = min(range(len(ours)), key=errors.__getitem__)
    inputs, features = ours[best]

    found = CallFindings()
    tolerance = INPUT_TOLERANCES[dit.dtype]
    for name, value in theirs.items():
        is_compared = name in inputs and name not in known.get('unlike', ())
        if is_compared and _tensors(value) and _tensors(inputs[name]):
            found.inputs[name] = _difference(value, inputs[name], batch)
    for name, error in found.inputs.items():
        if error > tolerance:
            is_free = (name == latent and not is_started) or (name == time and not is_timed)
            (found.given if is_free else found.wrong).append(name)
    # Features are compared at equal inputs, so that rounding of the inputs plays no part.
    same = {name: inputs[name] for name in found.inputs if name not in found.wrong}
    _, maps, found.left_out = _call(pipeline, dit, settings, batch, same, shape, dit.keys)
    for key, wanted in maps.items():
        reference, value = wanted[-batch:].float(), features[key].float()
        error = (value - reference).norm() / reference.norm().clamp_min(1e-30)
        found.features[key] = float(error)
    return found


def _settings(
    pipeline: Any, dit: FrozenDiT, timestep: int, side: int, batch: int
) -> tuple[dict[str, Any], bool]:
    """Arguments of the pipeline's call, and whether they say at which timestep it is."""
    takes = inspect.signature(pipeline.__call__).parameters
    settings = {name: value for name, value in _SETTINGS.items() if name in takes}
    sides = {name: side for name in ('height', 'width') if name in takes}
    if not sides and side != dit.native_size:
        raise ValueError(
            f'the call of {type(pipeline).__name__} makes images of {dit.native_size} pixels '
            f'alone, and {side} were asked for'
        )
    settings.update(sides)
    settings.update({name: batch for name in _COUNTS if name in takes})
    if 'class_labels' in takes:
        settings['class_labels'] = [dit.family.num_classes] * batch  # type: ignore[attr-defined]
    # A model that is told the scale has the pipeline's default; elsewhere one means two passes.
    is_told = pipeline.transformer.config.get('guidance_embeds')
    if 'guidance_scale' in takes and not is_told:
        settings['guidance_scale'] = 1.0
        if 'guidance_schedule' in takes:
            settings['guidance_schedule'] = None
    known = _CALLS.get(type(pipeline).__name__, {})
    settings.update(known.get('settings', {}))
    settings['generator'] = torch.Generator('cpu').manual_seed(0)
    usual = 'sigmas' if isinstance(dit.process, FlowMatchingProcess) else 'timesteps'
    time = known.get('time', usual)
    table = inspect.signature(pipeline.scheduler.set_timesteps).parameters
    if time is not None and time in takes and time in table:
        value = timestep / dit.num_train_timesteps if time == 'sigmas' else timestep
        return {**settings, time: [value]}, True
    if isinstance(dit.process, DDPMProcess) and time is not None:
        # One step of this spacing is at 0 plus the offset.
        config = {**pipeline.scheduler.config, 'timestep_spacing': 'leading'}
        kind = getattr(diffusers, dit.process.scheduler_class)
        pipeline.scheduler = kind.from_config({**config, 'steps_offset': timestep})
        return settings, True
    return settings, False


def _start(shape: torch.Size, dtype: torch.dtype, dit: FrozenDiT) -> Tensor:
    """The noise that a pipeline draws with the generator of :func:`_settings`."""
    return randn_tensor(shape, torch.Generator('cpu').manual_seed(0), dit.device, dtype)


def _ours(
    dit: FrozenDiT, start: Tensor, timestep: int
) -> tuple[dict[str, Any], dict[TapKey, Tensor]]:
    """Inputs of our transformer, and features, where the noisy latent is what is given."""
    grid = dit.family.grid(start)
    level = dit.process.at(timestep, num_tokens=grid[0] * grid[1])
    noise = start.float() / level.sigma
    with _noting_inputs(dit.transformer) as inputs:
        features = dit.features(torch.zeros_like(noise), timestep, noise)
    return inputs, features


def _call(
    pipeline: Any,
    dit: FrozenDiT,
    settings: Mapping[str, Any],
    batch: int,
    same: Mapping[str, Any],
    shape: torch.Size,
    keys: Sequence[TapKey],
) -> tuple[dict[str, Any], dict[TapKey, Tensor], list[TapKey]]:
    """Inputs of the pipeline's transformer, features, and what is not seen.

    Args:
        pipeline: The pipeline.
        dit: What knows where hooks go.
        settings: Arguments of the call.
        batch: Images.
        same: Inputs that are put in the place of the pipeline's.
        shape: Shape of the latent.
        keys: (block, feature) to read.
    """
    transformer, family = pipeline.transformer, dit.family
    maps: dict[TapKey, Tensor] = {}
    left_out: list[TapKey] = []

    calls = _CALLS.get(type(pipeline).__name__, {}).get('calls', 1)

    def finish(*_: Any) -> None:
        nonlocal calls
        calls -= 1
        if not calls:
            raise _Read

    with contextlib.ExitStack() as stack:
        inputs = stack.enter_context(_noting_inputs(transformer, same, batch))
        for key in keys:
            tap = family.tap(transformer, *key)
            if tap.operand is None:
                hook = _reader(dit, key, tap, shape, maps)
                stack.callback(tap.module.register_forward_hook(hook).remove)
            else:
                left_out.append(key)  # no module gives it
        stack.callback(transformer.register_forward_hook(finish).remove)
        settings['generator'].manual_seed(0)
        with contextlib.suppress(_Read):
            pipeline(**settings)
            raise RuntimeError(f'{type(pipeline).__name__} did not call its transformer')
    return inputs, maps, left_out


def _reader(
    dit: FrozenDiT, key: TapKey, tap: Tap, shape: torch.Size, maps: dict[TapKey, Tensor]
) -> Callable[..., None]:
    grid = dit.family.grid(torch.empty(shape, device='meta'))

    def read(module: nn.Module, args: Any, output: Any) -> None:
        maps[key] = dit.family.to_map(tap.tokens(output, grid), grid)

    return read


@contextlib.contextmanager
def _noting_inputs(
    transformer: nn.Module, same: Mapping[str, Any] | None = None, batch: int = 0
) -> Iterator[dict[str, Any]]:
    """Arguments of the transformer's next call by their names; some are replaced."""
    noted: dict[str, Any] = {}
    signature = inspect.signature(type(transformer).forward)

    def note(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        bound = signature.bind(module, *args, **kwargs)
        for name, value in (same or {}).items():
            bound.arguments[name] = _fitted(value, bound.arguments[name], batch)
        arguments = dict(bound.arguments)
        noted.update({k: v for k, v in arguments.items() if k != next(iter(arguments))})
        return bound.args[1:], bound.kwargs

    handle = transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield noted
    finally:
        handle.remove()


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of an argument, which may be one, or lists of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [each for one in value for each in _tensors(one)]
    return []


def _difference(theirs: Any, ours: Any, batch: int) -> float:
    """Norm of the difference, relative to that of theirs.

    Infinite where numbers or shapes of tensors differ, or values are not finite.
    """
    pairs = list(zip(_tensors(theirs), _tensors(ours), strict=False))
    count = len(_tensors(ours))
    if not pairs or len(_tensors(theirs)) not in (count, 2 * count):
        return float('inf')
    worst = 0.0
    for one, other in pairs:
        if one.ndim and other.ndim and len(one) == 2 * len(other) == 2 * batch:
            one = one[-batch:]  # guidance has run the prompt next to the empty one
        try:
            dtype = torch.complex128 if one.is_complex() else torch.float64
            one, other = torch.broadcast_tensors(one.to(dtype), other.to(one.device, dtype))
        except RuntimeError:
            return float('inf')
        error = float((one - other).norm() / one.norm().clamp_min(1e-30))
        if not math.isfinite(error):  # max() would drop NaN
            return float('inf')
        worst = max(worst, error)
    return worst


def _fitted(ours: Any, theirs: Any, batch: int) -> Any:
    """Ours in the form of theirs: twice where guidance runs two prompts."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        if ours.ndim and theirs.ndim and len(theirs) == 2 * len(ours) == 2 * batch:
            ours = torch.cat([ours, ours])
        if ours.ndim and theirs.ndim and len(theirs) == 1:
            ours = ours[:1]  # broadcast over the batch
        return ours.to(theirs.device, theirs.dtype).expand(theirs.shape)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        copies = len(theirs) // max(1, len(ours))
        return [_fitted(a, b, batch) for a, b in zip([*ours] * copies, theirs, strict=True)]
    return ours

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""LoRA: added to the weights when they are loaded, so that features cost what they cost without.

The weights of an adapter under the names of diffusers (and of peft and kohya, which keep them) are
read here; other layouts are converted by diffusers. Every tensor of a file is used, or the file is
refused. Weights for blocks that are not read are left out.

LoRA: arXiv 2106.09685; DoRA: arXiv 2402.09353; LoKr: arXiv 2309.14859.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor, nn

from mmaselect.checks import check_path
from mmaselect.diffusion.locate import PICKLED, SAFETENSORS, resolve_folder, weights_file
from mmaselect.diffusion.lora_files import LoraFile, open_lora

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)

# Before names of modules: of peft, of pipelines, of ComfyUI, of old diffusers.
_STRIPPED = re.compile(r'(base_model\.model\.|transformer\.|diffusion_model\.|unet\.)+')
# Before names of modules whose dots are underscores: of kohya and LyCORIS.
_UNDERSCORED = re.compile(r'(lora_unet_|lora_transformer_|lycoris_unet_|lycoris_)')
_OF_TEXT_ENCODERS = ('text_encoder', 'lora_te')
# Ends of names, and what they are; an adapter's own name may stand in them.
_PARTS = tuple(
    (re.compile(rf'(?P<module>.+)\.{end}'), part)
    for end, part in (
        (r'lora_(?:A|down)(?:\.(?P<adapter>[\w-]+))?\.weight', 'down'),
        (r'lora_(?:B|up)(?:\.(?P<adapter>[\w-]+))?\.weight', 'up'),
        (r'lora_(?:B|up)(?:\.(?P<adapter>[\w-]+))?\.bias', 'bias'),
        (r'(?:lora|lora_linear_layer)\.down\.weight', 'down'),
        (r'(?:lora|lora_linear_layer)\.up\.weight', 'up'),
        (r'lora_magnitude_vector(?:\.(?P<adapter>(?!weight)[\w-]+))?(?:\.weight)?', 'magnitude'),
        (r'dora_scale', 'magnitude'),
        (r'(?P<part>lokr_w[12](?:_[ab])?)(?:\.(?P<adapter>[\w-]+))?', None),
        (r'alpha', 'alpha'),
        (r'diff', 'diff'),
        (r'diff_b', 'bias'),
    )
)
#: What a layer may be changed by: parts that belong together, and those that may be added.
_KINDS: tuple[tuple[set[str], set[str]], ...] = (
    ({'down', 'up'}, {'alpha', 'bias', 'magnitude'}),
    ({'lokr_w1', 'lokr_w2'}, {'alpha'}),
    ({'lokr_w1_a', 'lokr_w1_b', 'lokr_w2'}, {'alpha'}),
    ({'lokr_w1', 'lokr_w2_a', 'lokr_w2_b'}, {'alpha'}),
    ({'lokr_w1_a', 'lokr_w1_b', 'lokr_w2_a', 'lokr_w2_b'}, {'alpha'}),
    ({'diff'}, {'bias'}),
    ({'bias'}, set()),
)

#: Layer to its parts by name.
Layers = dict[str, dict[str, Tensor]]


def find_lora(lora: str | Path) -> str:
    """File, folder or hub id of a LoRA from what the user wrote.

    Raises:
        FileNotFoundError: If it reads like a path and there is nothing.
        ValueError: If it is a file of another kind.
    """
    check_path('lora', lora)
    file = weights_file('lora', lora)
    if file is not None and file.suffix.lower() not in (SAFETENSORS, *PICKLED):
        raise ValueError(f'lora={str(lora)!r} must be a {SAFETENSORS} file, a folder or a hub id')
    return str(file) if file is not None else resolve_folder('lora', lora)


def mention_loras(folder: Path) -> None:
    """Log that there are LoRA files in a pipeline's folder, which nothing reads unless asked to."""
    files = [
        *folder.glob('*lora*.safetensors'),
        *folder.glob('transformer/*lora*.safetensors'),
        *folder.glob('transformer/adapter_model.safetensors'),
    ]
    if files:
        logger.warning(
            '%s holds a LoRA, %s, which is not applied. To fuse it, set lora=%r',
            folder,
            files[0].name,
            str(files[0]),
        )


def fuse_lora(
    transformer: ModelMixin,
    config: Mapping[str, Any],
    pipeline_class: str | None,
    lora: str | Path,
    scale: float,
    hub_kwargs: Mapping[str, Any],
) -> None:
    """Add a LoRA to the weights of a transformer. The log says how strongly.

    Args:
        transformer: With the blocks that are needed.
        config: Config of the whole transformer.
        pipeline_class: The pipeline of diffusers, which knows the layouts of LoRA files that other
            programs write; None if there is none.
        lora: File, folder or hub id.
        scale: What the LoRA is multiplied by.
        hub_kwargs: Where on the hub files are found.

    Raises:
        FileNotFoundError: If there is no LoRA.
        ValueError: If it is the LoRA of another model, a tensor of it cannot be used, it changes
            no weight, or the model's weights are quantized.
    """
    where = f'lora={str(lora)!r}'
    if getattr(transformer, 'hf_quantizer', None) is not None:
        raise ValueError(
            f'{where} cannot be fused into quantized weights: leave out the quantization, or fuse '
            f'it before (`fuse_lora` of diffusers, then `save_pretrained`)'
        )
    file = open_lora(find_lora(lora), where, hub_kwargs)
    with torch.device('meta'):
        whole = type(transformer).from_config(dict(config))
    layers = _read_layers(file, whole, pipeline_class)
    scalings = {name: _scaling(file, name, parts) for name, parts in layers.items()}
    for name, parts in layers.items():
        blank = {part: value.to('meta') for part, value in parts.items()}
        _changed(whole.get_submodule(name), blank, 1.0, f'{where}: {name}')

    built = {name for name, _ in transformer.named_modules()}
    kept = [name for name in layers if name in built]
    if len(kept) < len(layers):
        logger.log(
            logging.INFO if kept else logging.WARNING,
            '%s: %d of the %d layers that it changes are in blocks that are not read, and left out',
            where,
            len(layers) - len(kept),
            len(layers),
        )
    changes = 0
    for name in kept:
        layer = transformer.get_submodule(name)
        changed = _changed(layer, layers[name], scalings[name] * scale, f'{where}: {name}')
        changes += sum(_store(layer, *item, f'{where}: {name}') for item in changed.items())
    if kept and not changes:
        raise ValueError(
            f'{where} changes no weight of the {len(kept)} layers that it is for: it was not '
            f'trained, or its strength is too small (scale={scale:g})'
        )
    if kept:
        strengths = sorted({round(scalings[name], 6) for name in kept})
        logger.info(
            '%s: fused into %d layers; strength %s (alpha / rank) times %g (scale)',
            where,
            len(kept),
            ', '.join(f'{value:g}' for value in strengths[:4]) + ', ...' * (len(strengths) > 4),
            scale,
        )


# -- the tensors of a file -------------------------------------------------------------------------
def _read_layers(file: LoraFile, whole: ModelMixin, pipeline_class: str | None) -> Layers:
    """Parts of every layer that a file changes, by names of the transformer's modules.

    Raises:
        ValueError: If a tensor is for no module of the transformer, is of an unknown kind, or lacks
            others that belong to it.
    """
    tensors = file.tensors
    encoders = [key for key in tensors if key.startswith(_OF_TEXT_ENCODERS)]
    if encoders:
        logger.warning(
            '%s: %d of its tensors are for text encoders, and are not applied',
            file.where,
            len(encoders),
        )
        tensors = {key: value for key, value in tensors.items() if key not in encoders}
    layers, unknown = _sorted(tensors, whole, file.where)
    if unknown:
        converted = _converted(file, tensors, pipeline_class)
        if converted is not None:
            layers, unknown = _sorted(converted, whole, file.where)
    title = type(whole).__name__
    if unknown or not layers:
        raise ValueError(
            f'{file.where} is not a LoRA of this model, or of a kind that is not read: it has '
            f'{len(unknown)} tensors for which a {title} of its config has no layer, or that are '
            f'no known part of one (first: {", ".join(unknown[:3]) or "it is empty"})'
        )
    for name, parts in layers.items():
        if not any(need <= set(parts) <= need | more for need, more in _KINDS):
            raise ValueError(
                f'{file.where}: for {name} it has {", ".join(sorted(parts))}, which do not make a '
                f'whole: the file is incomplete, or of a kind that is not read'
            )
    return layers


def _sorted(
    tensors: Mapping[str, Tensor], whole: nn.Module, where: str
) -> tuple[Layers, list[str]]:
    """Tensors by layer and part, and the names of those that have no place."""
    modules = {name: name for name, _ in whole.named_modules()}
    underscored = {name.replace('.', '_'): name for name in modules}
    layers: Layers = defaultdict(dict)
    unknown = []
    adapters = set()
    for key, value in tensors.items():
        found = next(((m, part) for end, part in _PARTS if (m := end.fullmatch(key))), None)
        name, part = None, ''
        if found is not None:
            match, kind = found
            stem = _STRIPPED.sub('', match['module'], count=1)
            name = modules.get(stem) or underscored.get(_UNDERSCORED.sub('', stem, count=1))
            part = kind or match['part']
            adapters.add(match.groupdict().get('adapter'))
        if not name:
            unknown.append(key)
        elif part in layers[name]:
            raise ValueError(
                f'{where}: it has two tensors of one kind for {name}, such as {key}: '
                + (
                    f'it holds several adapters ({", ".join(sorted(filter(None, adapters)))}), '
                    f'save each by itself'
                    if len(adapters - {None}) > 1
                    else 'which of them counts cannot be told'
                )
            )
        else:
            layers[name][part] = value
    return dict(layers), unknown


def _converted(
    file: LoraFile, tensors: Mapping[str, Tensor], pipeline_class: str | None
) -> dict[str, Tensor] | None:
    """Tensors under the names of diffusers; None if the pipeline has no converter.

    Raises:
        ValueError: If diffusers cannot convert them, or leaves some.
    """
    loader: Any = getattr(diffusers, pipeline_class or '', None)
    if not hasattr(loader, 'lora_state_dict'):
        return None
    takes_alphas = 'return_alphas' in inspect.signature(loader.lora_state_dict).parameters
    # What a result does not depend on was left: autograd knows.
    leaves = {
        key: value.float().requires_grad_() for key, value in tensors.items() if value.numel()
    }
    options = {'return_alphas': True} if takes_alphas else {}
    try:
        with torch.enable_grad():
            given = {key: value * 1 for key, value in leaves.items()}
            read = loader.lora_state_dict(given, return_lora_metadata=True, **options)
            found, *others = read
            total = sum(value.sum() for value in found.values() if value.requires_grad)
        if isinstance(total, Tensor):
            total.backward()
    except Exception as error:  # it meets whatever names make it meet
        logger.info('%s: diffusers does not convert it: %s', file.where, error)
        return None
    alphas = (others[0] if takes_alphas else None) or {}
    left = [
        key for key, value in leaves.items() if value.grad is None and not key.endswith('.alpha')
    ]
    if left:
        raise ValueError(
            f'{file.where}: diffusers converts it for {pipeline_class} without {len(left)} of its '
            f'tensors (first: {", ".join(left[:3])}), so that it would act in part'
        )
    found = {key: value.detach() for key, value in found.items()}
    return found | {key: torch.tensor(float(value)) for key, value in alphas.items()}


# -- how strongly ----------------------------------------------------------------------------------
def _scaling(file: LoraFile, name: str, parts: Mapping[str, Tensor]) -> float:
    """What the product of a layer's matrices is multiplied by: alpha / rank, usually.

    Raises:
        ValueError: If the tensors and the config of the file contradict each other.
    """
    inner = [parts[part].shape[axis] for part, axis in _RANK_OF if part in parts]
    rank = float(inner[0]) if inner else None
    if rank is not None and file.rank(name) not in (None, rank) and 'down' in parts:
        raise ValueError(
            f'{file.where}: {file.config_name} says rank {file.rank(name)} for {name}, whose '
            f'weights have rank {rank:g}'
        )
    if 'diff' in parts or not {'down', 'lokr_w1', 'lokr_w1_a'} & set(parts):
        return 1.0
    own = float(parts['alpha']) if 'alpha' in parts else None
    stated = file.alpha(name)
    if own is not None and stated not in (None, own):
        raise ValueError(
            f'{file.where}: for {name} the file has alpha {own:g}, and {file.config_name} says '
            f'{stated:g}: which of them counts cannot be told'
        )
    if own is not None:
        return own / rank if rank else 1.0  # LyCORIS has no alpha where both factors are whole
    if stated is None:
        return 1.0  # diffusers bakes alpha into the weights
    rank = file.rank(name) or rank
    if not rank:
        raise ValueError(f'{file.where}: {file.config_name} has an alpha and no rank')
    return stated / (math.sqrt(rank) if file.root_of_rank else rank)


#: Parts whose shape tells the rank, and in which axis.
_RANK_OF = (('down', 0), ('lokr_w2_b', 0), ('lokr_w1_b', 0))


# -- the sum ---------------------------------------------------------------------------------------
def _changed(
    layer: nn.Module, parts: Mapping[str, Tensor], scaling: float, where: str
) -> dict[str, Tensor]:
    """New values of a layer's weight and bias, in float32.

    Raises:
        ValueError: If the layer has none of them, or shapes do not fit.
    """
    found: dict[str, Tensor] = {}
    for entry in ('weight', 'bias'):
        value = getattr(layer, entry, None)
        needed = 'bias' in parts if entry == 'bias' else set(parts) != {'bias'}
        if needed and not isinstance(value, Tensor):
            raise ValueError(f'{where} cannot be fused: the layer has no {entry}')
        if needed and value is not None:
            found[entry] = value.detach().float()
    parts = {part: value.detach().float().to(_device(found)) for part, value in parts.items()}
    try:
        if 'weight' in found:
            weight = found['weight'] + scaling * _product(parts).reshape(found['weight'].shape)
            if 'magnitude' in parts:
                rows = parts['magnitude'].squeeze()
                # LyCORIS may have those of columns, (1, in).
                is_row = parts['magnitude'].ndim == 2 and len(parts['magnitude']) == 1
                if rows.shape != weight.shape[:1] or is_row:
                    raise ValueError('magnitudes are not those of its rows')
                norm = weight.flatten(1).norm(dim=1)
                weight = weight * (rows / norm).reshape(-1, *[1] * (weight.ndim - 1))
            found['weight'] = weight
        if 'bias' in found:
            found['bias'] = found['bias'] + scaling * parts['bias'].reshape(found['bias'].shape)
    except (RuntimeError, ValueError) as error:
        shapes = {part: tuple(value.shape) for part, value in parts.items()}
        whole = {entry: tuple(value.shape) for entry, value in found.items()}
        raise ValueError(
            f'{where} cannot be fused: shapes {shapes} do not fit {whole} ({error}). It was '
            f'trained for another model'
        ) from error
    return found


def _device(values: Mapping[str, Tensor]) -> torch.device:
    return next(iter(values.values())).device


def _product(parts: Mapping[str, Tensor]) -> Tensor:
    """What is added to a weight, for a scaling of 1; of any shape with its number of elements."""
    if 'diff' in parts:
        return parts['diff']
    if 'down' in parts:
        return parts['up'].flatten(1) @ parts['down'].flatten(1)
    first, second = (
        parts[name] if name in parts else parts[f'{name}_a'] @ parts[f'{name}_b']
        for name in ('lokr_w1', 'lokr_w2')
    )
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def _store(layer: nn.Module, entry: str, value: Tensor, where: str) -> bool:
    """Write a new value of a weight or bias. Whether it differs from the old one."""
    parameter = getattr(layer, entry)
    if parameter.is_meta:
        raise ValueError(
            f'{where} cannot be fused into weights that device_map keeps elsewhere: leave it out, '
            f'or fuse the LoRA before'
        )
    new = value.to(parameter.dtype)
    if not new.isfinite().all():
        raise ValueError(f'{where}: with the LoRA, the {entry} is not finite in {parameter.dtype}')
    differs = not torch.equal(new, parameter.detach())
    with torch.no_grad():
        parameter.copy_(new)
    return differs

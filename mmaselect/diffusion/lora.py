# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""LoRA: fused into the weights when they are loaded, so that features cost what they cost without.

Reading and fusing are diffusers' and peft's. What is done here: weights for blocks that are not
read are left out, and a LoRA of another model is an error.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_pipeline import AuraFlowLoraLoaderMixin

from mmaselect.checks import check_path
from mmaselect.diffusion.locate import PICKLED, SAFETENSORS, resolve_folder, weights_file
from mmaselect.install import install_hint

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)

_PREFIX = 'transformer'
# Before names of modules: of peft, of pipelines, of ComfyUI.
_STRIPPED = ('base_model.model.', f'{_PREFIX}.', 'diffusion_model.')
#: Entries of peft's adapter_config.json that say how weights are scaled.
_SCALING = ('r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'target_modules', 'use_rslora',
            'use_dora', 'bias', 'lora_bias')  # fmt: skip


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
    """Add a LoRA to the weights of a transformer.

    Args:
        transformer: With the blocks that are needed.
        config: Config of the whole transformer.
        pipeline_class: The pipeline of diffusers, which knows the layouts of LoRA files that other
            programs write; None if there is none.
        lora: File, folder or hub id.
        scale: What the LoRA is multiplied by.
        hub_kwargs: Where on the hub files are found.

    Raises:
        ImportError: If peft is not installed.
        FileNotFoundError: If there is no LoRA.
        ValueError: If it is the LoRA of another model, or weights are quantized.
    """
    where = f'lora={str(lora)!r}'
    if importlib.util.find_spec('peft') is None:
        raise ImportError(
            f'{where} is fused with peft, which is not installed: `pip install peft`, or all that '
            f'checkpoints need by {install_hint("checkpoints")}'
        )
    if getattr(transformer, 'hf_quantizer', None) is not None:
        raise ValueError(
            f'{where} cannot be fused into quantized weights: leave out the quantization, or fuse '
            f'it before (`fuse_lora` of diffusers, then `save_pretrained`)'
        )
    weights, alphas, metadata = _read(lora, where, pipeline_class, hub_kwargs)
    kept = _needed(weights, transformer, config, where)
    if not kept:
        return
    tensors = {f'{_PREFIX}.{name}': value for name, value in kept.items()}
    modules = {_module(name) for name in kept}
    alphas = {
        f'{_PREFIX}.{name}': value for name, value in alphas.items() if _module(name) in modules
    }
    # Some classes of diffusers take no LoRA of themselves.
    plain = transformer.__class__
    if not isinstance(transformer, PeftAdapterMixin):
        transformer.__class__ = type(plain.__name__, (plain, PeftAdapterMixin), {})
    try:
        transformer.load_lora_adapter(
            tensors,
            prefix=_PREFIX,
            adapter_name='lora',
            network_alphas=alphas or None,
            metadata=metadata or None,
        )
        transformer.fuse_lora(lora_scale=scale, safe_fusing=True)
        transformer.unload_lora()
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{where} cannot be fused into {plain.__name__} ({type(error).__name__}: {error}): it '
            f'was trained for another model, or is of a kind that diffusers does not read'
        ) from error
    finally:
        transformer.__class__ = plain


def _read(
    lora: str | Path, where: str, pipeline_class: str | None, hub_kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, alphas and metadata, by names of modules in the transformer."""
    found = find_lora(lora)
    loader: Any = getattr(diffusers, pipeline_class or '', None)
    if not hasattr(loader, 'lora_state_dict'):
        loader = AuraFlowLoraLoaderMixin  # it takes weights under the names of diffusers as is
    takes_alphas = 'return_alphas' in inspect.signature(loader.lora_state_dict).parameters
    options = {k: v for k, v in hub_kwargs.items() if k not in ('variant', 'revision')}
    try:
        read = loader.lora_state_dict(
            found,
            return_lora_metadata=True,
            **({'return_alphas': True} if takes_alphas else {}),
            **options,
        )
    except OSError as error:
        raise FileNotFoundError(
            f'{where}: cannot be read ({error}). Give a .safetensors file, a folder that holds '
            f'one, or a hub id'
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f'{where}: diffusers cannot read it as a LoRA ({type(error).__name__}: {error})'
        ) from error
    weights, *others = read
    alphas = (others[0] if takes_alphas else None) or {}
    metadata = others[-1] or {}
    if not metadata and Path(found, 'adapter_config.json').is_file():
        entries = json.loads(Path(found, 'adapter_config.json').read_text())
        metadata = {f'{_PREFIX}.{k}': entries[k] for k in _SCALING if entries.get(k) is not None}
    encoders = {key for key in weights if key.startswith('text_encoder')}
    if encoders:
        logger.warning(
            '%s: %d of its weights are for text encoders, and are not applied', where, len(encoders)
        )
    return (
        {_stripped(key): value for key, value in weights.items() if key not in encoders},
        {_stripped(key): value for key, value in alphas.items() if 'text_encoder' not in key},
        metadata,
    )


def _stripped(key: str) -> str:
    for prefix in _STRIPPED:
        key = key.removeprefix(prefix)
    return key


def _module(key: str) -> str:
    """The module that a weight of a LoRA belongs to."""
    return re.split(r'\.(?:lora|lokr|alpha|dora_scale|diff)\b|\.(?:lora_|lokr_)', key)[0]


def _needed(
    weights: Mapping[str, torch.Tensor],
    transformer: ModelMixin,
    config: Mapping[str, Any],
    where: str,
) -> dict[str, torch.Tensor]:
    """The weights for modules that are there; those that another model has are an error."""
    built = {name for name, _ in transformer.named_modules()}
    cls = type(transformer)
    with torch.device('meta'):
        whole = {name for name, _ in cls.from_config(dict(config)).named_modules()}
    unknown = sorted({_module(key) for key in weights} - whole)
    if unknown or not weights:
        raise ValueError(
            f'{where} is no LoRA of this model: a {cls.__name__} of its config has no '
            f'{", ".join(unknown[:3]) or "weights of it"}'
        )
    kept = {key: value for key, value in weights.items() if _module(key) in built}
    skipped = len({_module(key) for key in weights}) - len({_module(key) for key in kept})
    if skipped:
        logger.info(
            '%s: %d of the %d layers that it changes are in blocks that are not read, and left out',
            where,
            skipped,
            len({_module(key) for key in weights}),
        )
    return kept

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A transformer in one file: under diffusers' names, or those of its authors and of ComfyUI.

Original names are diffusers' affair (``from_single_file``). Weights of blocks that are not needed
never reach it: its converters copy what they are given.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import is_accelerate_available
from safetensors.torch import save_file
from torch import Tensor, nn

from mmaselect.checks import shorten
from mmaselect.diffusion.diagnose import PartConfig
from mmaselect.diffusion.gguf_file import GGUFTensors
from mmaselect.diffusion.parts import refuse_missing
from mmaselect.install import install_hint

if TYPE_CHECKING:
    from diffusers import ModelMixin

#: What stands before the transformer's names in files that may hold other models, too.
_PREFIXES = ('model.diffusion_model.', 'diffusion_model.', 'transformer.', 'net.')
#: Ends of the names that quantized layouts of other programs have beside the weights.
_FOREIGN = ('scale_weight', 'weight_scale', 'scaled_fp8', 'comfy_quant', 'quant_state', '.absmax')


class OriginalLayout:
    """The layout of a class's weights in the files of its authors, which diffusers converts.

    Args:
        stacks: Names of the lists of blocks, in the order of ``Family.stacks``.
        width: The only width, in channels, that the converter knows; None where it knows all.
    """

    def __init__(self, *stacks: str, width: int | None = None) -> None:
        self.stacks = stacks
        self.width = width


def transformer_names(names: Collection[str]) -> dict[str, str]:
    """Names of a transformer's weights without a prefix, to those in the file."""
    for prefix in _PREFIXES:
        found = {name[len(prefix) :]: name for name in names if name.startswith(prefix)}
        if found:
            return found
    return {name: name for name in names}


class _Asked(dict[str, Tensor]):
    """Weights that remember what a converter would have liked to find."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.missed: list[str] = []

    def pop(self, name: str, *default: Any) -> Any:
        if name not in self:
            self.missed.append(name)
        return super().pop(name, *default)


class SingleFile:
    """The weights of a transformer of which a pipeline in diffusers' layout has the config.

    Args:
        tensors: Weights by their names in the file.
        file: The file.
        name: What the user wrote as ``pretrained``.
        config: Config of the transformer of the ``base`` pipeline; None without one.

    Attributes:
        config (PartConfig): The same.

    Raises:
        ValueError: If there is no ``base``, or another program quantized the weights.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], file: Path, name: str, config: PartConfig | None
    ) -> None:
        self.where = f'pretrained={name!r}'
        foreign = next((key for key in tensors if key.endswith(_FOREIGN)), None)
        if foreign is not None:
            raise ValueError(
                f'{self.where} is quantized in a layout that diffusers does not read (it has '
                f'{foreign!r}): give the file in bf16 or fp16, a GGUF file, or quantize by '
                f'load_kwargs=dict(quantization_config=...)'
            )
        if config is None:
            raise ValueError(
                f'{self.where} holds the weights of a transformer alone: name by base=... the '
                f"pipeline that it belongs to, such as base='black-forest-labs/FLUX.1-dev', for "
                f'its config, scheduler and VAE'
            )
        self.config = config
        self.file = file
        self.tensors = tensors
        self.names = transformer_names(tensors.keys())

    def load(
        self,
        cls: type[ModelMixin],
        overrides: Mapping[str, Any],
        dtype: torch.dtype,
        load_kwargs: Mapping[str, Any],
        layout: OriginalLayout | None,
    ) -> ModelMixin:
        """The first blocks with their weights.

        Args:
            cls: Class of diffusers, without its superfluous blocks.
            overrides: Config entries that stand instead of those of the config; numbers of blocks
                in the order of the family's stacks.
            dtype: Of the weights.
            load_kwargs: Of ``from_pretrained``, or ``from_single_file``.
            layout: The original layout that the class converts.

        Raises:
            MissingWeights: If weights are missing.
            ValueError: If diffusers cannot convert the names.
        """
        with torch.device('meta'):
            model = cls.from_config({**self.config, **overrides})
        needed = set(model.state_dict())
        parameters = {name for name, _ in model.named_parameters()}
        untrimmed: Any = cls.__base__
        with torch.device('meta'):
            whole = untrimmed.from_config(dict(self.config)).state_dict().keys()
        # Original layouts share names with that of diffusers.
        is_original = bool(parameters - self.names.keys()) and bool(self.names.keys() - whole)
        options = {'torch_dtype': dtype, **overrides, **load_kwargs}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, 'config.json').write_text(json.dumps(dict(self.config)))
            if is_original:
                kept = self._kept(cls.__name__, layout, overrides)
                return self._from_single_file(cls, folder, kept, options, layout)
            refuse_missing(self.where, sorted(parameters - self.names.keys()))
            kept = needed & self.names.keys()
            if isinstance(self.tensors, GGUFTensors):
                if not hasattr(cls, 'from_single_file'):
                    raise ValueError(
                        f'{self.where}: diffusers reads no GGUF files of {cls.__name__}: give '
                        f'the weights as .safetensors, and load_kwargs=dict('
                        f'quantization_config=...) if they shall be quantized'
                    )
                return self._from_single_file(cls, folder, kept, options, layout)
            return self._from_pretrained(cls, Path(folder), kept, options)

    def _from_pretrained(
        self, cls: type[ModelMixin], folder: Path, kept: set[str], options: dict[str, Any]
    ) -> ModelMixin:
        weights = folder / 'diffusion_pytorch_model.safetensors'
        if self.file.suffix == '.safetensors' and len(self.names) == len(self.tensors) and all(
            ours == theirs for ours, theirs in self.names.items()
        ):  # fmt: skip
            weights.symlink_to(self.file.resolve())
        else:
            save_file({name: self.tensors[self.names[name]].contiguous() for name in kept}, weights)
        return cls.from_pretrained(folder, **options)

    def _kept(
        self, class_name: str, layout: OriginalLayout | None, overrides: Mapping[str, Any]
    ) -> set[str]:
        """Original names of what is needed.

        One block more: converters take the last for one of another kind, or want one of each.
        """
        if layout is None:
            raise ValueError(
                f'{self.where}: its weights have not the names of {class_name} in diffusers '
                f'(first: {sorted(self.names)[:3]}), and diffusers converts no others to this '
                f"class: give the model in diffusers' layout"
            )
        counts = [value for value in overrides.values() if type(value) is int]
        stacks = dict(zip(layout.stacks, counts, strict=False))
        kept = set()
        for name in self.names:
            # FLUX.3 has a list for each kind of token: `content_mode_blocks.image.0.`.
            found = re.match(r'(\w+)\.(?:\w+\.)??(\d+)\.', name)
            last = None if found is None else stacks.get(found[1])
            if found is None or last is None or int(found[2]) <= last:
                kept.add(name)
        return kept

    def _from_single_file(
        self,
        cls: type[ModelMixin],
        folder: str,
        kept: set[str],
        options: dict[str, Any],
        layout: OriginalLayout | None,
    ) -> ModelMixin:
        if not is_accelerate_available():
            raise ImportError(
                f'{self.where}: files of weights are read with accelerate, which is not installed: '
                f'{install_hint("checkpoints")}'
            )
        if isinstance(self.tensors, GGUFTensors):
            options.setdefault('quantization_config', self.tensors.quantization(options))
        built: list[nn.Module] = []

        class Watched(cls):
            @classmethod
            def from_config(klass, *args: Any, **kwargs: Any) -> ModelMixin:
                built.append(super().from_config(*args, **kwargs))
                return built[-1]

        Watched.__name__ = cls.__name__
        weights = _Asked({name: self.tensors[self.names[name]] for name in kept})
        try:
            model = Watched.from_single_file(weights, config=folder, **options)
        except (ImportError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and built:
                # Parameters that nothing was read for cannot leave the meta device.
                lost = _unread(built[-1])
                if len(lost) < len(list(built[-1].parameters())) / 2:
                    self._refuse_unread(lost, weights)
            modules = {name.partition('.')[0] for name in kept}
            last = weights.missed[-1:]
            # One of a layout that the file has, or else the model is another.
            if isinstance(error, KeyError) and last and last[0].partition('.')[0] in modules:
                refuse_missing(self.where, last)
            if isinstance(error, TypeError) and len(weights.missed) < len(kept) / 2:
                # Some converters go on with None for what is missing.
                refuse_missing(self.where, sorted(weights.missed))
            raise ValueError(
                f'{self.where}: diffusers cannot convert its weights to {cls.__name__} '
                f'({type(error).__name__}: {shorten(str(error), 300)}). Either they are of another '
                f'model than base=..., or its converter does not know this layout'
                f"{self._width_note(layout)}: give the model in diffusers' layout"
            ) from error
        self._refuse_unread(_unread(model), weights)
        model.__class__ = cls
        return model

    def _refuse_unread(self, lost: list[str], left: Collection[str]) -> None:
        """Say which weights are missing, or what of the file the converter left."""
        left = sorted(left)
        if lost and left and not isinstance(self.tensors, GGUFTensors):
            raise ValueError(
                f"{self.where}: diffusers' converter does not know {len(left)} weights of the file "
                f'(first: {left[:3]}), and {len(lost)} of the model stay without (first: '
                f"{lost[:3]}): give the model in diffusers' layout"
            )
        refuse_missing(self.where, lost)

    def _width_note(self, layout: OriginalLayout | None) -> str:
        """Of a model that is not as wide as the only one that the converter knows."""
        known, config = None if layout is None else layout.width, self.config
        if known is None:
            return ''
        if 'hidden_size' in config:
            width = config['hidden_size']
        else:
            width = config['num_attention_heads'] * config['attention_head_dim']
        if width == known:
            return ''
        return f' (it knows {known} channels alone, and base=... has {width})'


def _unread(model: nn.Module) -> list[str]:
    """Parameters that nothing was read for."""
    return sorted(name for name, value in model.named_parameters() if value.is_meta)

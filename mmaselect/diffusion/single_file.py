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
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.utils import is_accelerate_available
from safetensors.torch import save_file
from torch import Tensor, nn

from mmaselect.checks import shorten
from mmaselect.diffusion.diagnose import PartConfig
from mmaselect.diffusion.gguf_file import GGUFTensors
from mmaselect.diffusion.parts import refuse_missing, refuse_strays
from mmaselect.diffusion.scales import ScaledTensors
from mmaselect.install import install_hint

if TYPE_CHECKING:
    from diffusers import ModelMixin

#: What stands before the transformer's names in files that may hold other models, too.
_PREFIXES = ('model.diffusion_model.', 'diffusion_model.', 'transformer.', 'net.')
#: Ends of the names that layouts of four bits have, which other programs write.
_FOREIGN = ('quant_state', '.absmax', '.quant_map', '.bitsandbytes__nf4', '.bitsandbytes__fp4')


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
        ValueError: If there is no ``base``, or the weights are quantized in a way that is not read.
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
        self._weights: Mapping[str, Tensor] = tensors
        if not isinstance(tensors, GGUFTensors):
            self._weights = ScaledTensors(tensors, self.where)
        self.names = transformer_names(self._weights.keys())

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
            dtype: Precision of the weights.
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
            whole = untrimmed.from_config(dict(self.config))
        # Original layouts share names with that of diffusers.
        is_original = bool(parameters - self.names.keys()) and bool(
            self.names.keys() - whole.state_dict().keys()
        )
        options = {'torch_dtype': dtype, **overrides, **load_kwargs}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, 'config.json').write_text(json.dumps(dict(self.config)))
            if is_original:
                kept = self._kept(cls.__name__, layout, overrides)
                weights = self._read(kept, dtype)
                blank = {
                    name: torch.empty(weight.shape, dtype=weight.dtype, device='meta')
                    for name, weight in weights.items()
                }
                loaded = self._from_single_file(cls, folder, weights, options, layout)
                unread = {name for name in kept if _beyond(layout, overrides, name) == 0}
                self._refuse_unconverted(blank, unread, model, whole)
                return loaded
            refuse_missing(self.where, sorted(parameters - self.names.keys()))
            refuse_strays(self.where, self.names.keys() - needed, model, lambda: whole)
            kept = needed & self.names.keys()
            if isinstance(self.tensors, GGUFTensors):
                if not hasattr(cls, 'from_single_file'):
                    raise ValueError(
                        f'{self.where}: diffusers reads no GGUF files of {cls.__name__}: give '
                        f'the weights as .safetensors, and load_kwargs=dict('
                        f'quantization_config=...) if they shall be quantized'
                    )
                read = self._read(kept, dtype)
                return self._from_single_file(cls, folder, read, options, layout)
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
            read = self._read(kept, options['torch_dtype'])
            save_file({name: value.contiguous() for name, value in read.items()}, weights)
        return cls.from_pretrained(folder, **options)

    def _read(self, kept: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights by names without a prefix; those that had scales in the wanted precision."""
        found = {}
        for name in kept:
            weight = self._weights[self.names[name]]
            is_scaled = isinstance(self._weights, ScaledTensors) and self._weights.is_scaled(
                self.names[name]
            )
            found[name] = weight.to(dtype) if is_scaled else weight
        return found

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
        return {name for name in self.names if _beyond(layout, overrides, name) <= 0}

    def _from_single_file(
        self,
        cls: type[ModelMixin],
        folder: str,
        read: dict[str, Tensor],
        options: dict[str, Any],
        layout: OriginalLayout | None,
    ) -> ModelMixin:
        kept = set(read)
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
        weights = _Asked(read)
        read.clear()
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
                # Some converters return None for what is missing.
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

    def _refuse_unconverted(
        self, left: dict[str, Tensor], unread: set[str], model: ModelMixin, whole: ModelMixin
    ) -> None:
        """Raise a ValueError if the converter left weights, or made some that no module takes.

        Args:
            left: Entries that it was given, without values.
            unread: What belongs to the block that it wanted to see, and that nothing reads.
            model: What was built.
            whole: All of it.
        """
        convert = SINGLE_FILE_LOADABLE_CLASSES[type(whole).__name__]['checkpoint_mapping_fn']
        # Once more, without values: `from_single_file` says nothing of what it did not use.
        made = convert(checkpoint=left, config={**self.config})
        ignored = getattr(model, '_keys_to_ignore_on_load_unexpected', None) or ()
        strays = {
            name
            for name in {*left, *made} - model.state_dict().keys() - unread
            if not any(re.search(pattern, name) for pattern in ignored)
        }
        refuse_strays(self.where, strays, model, lambda: whole)

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


def _beyond(layout: OriginalLayout | None, overrides: Mapping[str, Any], name: str) -> int:
    """How far behind the last block that is needed a weight lies; below 0 if it is needed.

    Args:
        layout: Its lists of blocks.
        overrides: Its numbers of blocks, in the order of the family's stacks.
        name: Name of the weight, in the original layout.
    """
    counts = [value for value in overrides.values() if type(value) is int]
    stacks = dict(zip(layout.stacks if layout else (), counts, strict=False))
    # FLUX.3 has a list for each kind of token: `content_mode_blocks.image.0.`.
    found = re.match(r'(\w+)\.(?:\w+\.)??(\d+)\.', name)
    count = None if found is None else stacks.get(found[1])
    return -1 if found is None or count is None else int(found[2]) - count


def _unread(model: nn.Module) -> list[str]:
    """Parameters that nothing was read for."""
    return sorted(name for name, value in model.named_parameters() if value.is_meta)

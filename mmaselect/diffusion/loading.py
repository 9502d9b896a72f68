# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Reading a model, part by part, from diffusers' pipeline layout or from a file of weights.

Nothing here builds a whole pipeline: a transformer's first blocks, a VAE's encoder and two configs
are all that feature extraction needs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmaselect.checks import keywords, shorten
from mmaselect.diffusion.codec import (
    Codec,
    KLCodec,
    PixelCodec,
    check_replacement,
    codec_class,
)
from mmaselect.diffusion.diagnose import REPAIR, PartConfig, check_entries
from mmaselect.diffusion.dit_original import OriginalFile
from mmaselect.diffusion.hub import HubError, NotOnHub, Repository
from mmaselect.diffusion.locate import GGUF, resolve_folder, resolve_pretrained, weights_file
from mmaselect.diffusion.model_source import ModelSource
from mmaselect.diffusion.parts import MissingWeights, Part, naming_part
from mmaselect.diffusion.single_file import OriginalLayout, SingleFile
from mmaselect.diffusion.weight_files import open_weights

if TYPE_CHECKING:
    from diffusers import ModelMixin

#: What diffusers' ``from_pretrained`` of a model takes next to the entries of its config.
LOAD_KWARGS = (
    'device_map', 'max_memory', 'quantization_config', 'low_cpu_mem_usage', 'use_safetensors',
    'disable_mmap', 'offload_folder', 'offload_state_dict', 'ignore_mismatched_sizes',
    'variant',
)  # fmt: skip

#: The VAE that DiT, SiT and REPA were trained on, as their training scripts name it.
DEFAULT_VAE = 'stabilityai/sd-vae-ft-ema'

_NO_VAE = (
    '. A file of weights holds no VAE, and this one is what DiT, SiT and REPA were trained on: '
    'give a local copy of it, or another, as vae=FOLDER'
)

_DTYPES = {
    'fp32': torch.float32,
    'float32': torch.float32,
    'fp16': torch.float16,
    'float16': torch.float16,
    'bf16': torch.bfloat16,
    'bfloat16': torch.bfloat16,
}


def parse_dtype(dtype: str | torch.dtype, argument: str = 'dtype') -> torch.dtype:
    """``'fp16'``, ``'bf16'``, ``'fp32'`` (or torch's own names and dtypes) as a torch dtype.

    Args:
        dtype: What the user wrote.
        argument: The argument, for the message.

    Raises:
        ValueError: If it is none of them.
    """
    if isinstance(dtype, torch.dtype):
        if dtype in _DTYPES.values():
            return dtype
    elif str(dtype).removeprefix('torch.') in _DTYPES:
        return _DTYPES[str(dtype).removeprefix('torch.')]
    raise ValueError(f"{argument} {dtype!r} is not supported: use 'fp32', 'fp16' or 'bf16'")


def dequantized(weight: Tensor) -> Tensor:
    """The values that a quantized weight stands for; any other weight as it is."""
    if getattr(weight, 'quant_type', None) is not None:  # of GGUF
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight)
    # Not as a condition: type checkers take no tensor for such a subclass.
    is_quantized: bool = is_traceable_wrapper_subclass(weight)
    return weight.dequantize() if is_quantized else weight


def sample_values(tensor: Tensor, count: int) -> Tensor:
    """At least ``count`` values from all over a weight (all of a smaller one), float32, on the CPU.

    Quantized weights are read as the values they stand for. A weight that an offloading device map
    keeps elsewhere (on the meta device) has none to give: an empty tensor.
    """
    tensor = tensor.detach()
    if tensor.is_meta:
        return torch.empty(0)
    flat = dequantized(tensor).reshape(-1)
    return flat[:: max(1, flat.numel() // count)].float().cpu()


@contextlib.contextmanager
def _quiet_about_unused_weights() -> Iterator[None]:
    """Leaving blocks out is the point here; diffusers would list each of their weights."""
    loggers = [
        logging.getLogger(f'diffusers.{name}')
        for name in ('models.modeling_utils', 'loaders.single_file_model')
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trimmed(cls: type[ModelMixin], trim: Callable[[nn.Module], None]) -> type[ModelMixin]:
    """A subclass that is without its superfluous blocks before any weight is read.

    ``from_pretrained`` builds with ``from_config`` and then reads weights for what is there, so
    that this is also right for quantized weights and device maps.
    """

    class Trimmed(cls):
        @classmethod
        def from_config(klass, *args: Any, **kwargs: Any) -> nn.Module:
            model = super().from_config(*args, **kwargs)
            trim(model)
            return model

    # diffusers compares it with the class that the config names.
    Trimmed.__name__ = cls.__name__
    return Trimmed


class PipelineSource:
    """A model, whose parts are read one at a time.

    A pipeline on disk or on the hub has all of them. A transformer alone, in a folder or a file,
    takes the others from ``base``.

    Args:
        pretrained: The model: its name, a :class:`ModelSource`, or a dict of its fields.

    Raises:
        FileNotFoundError, ValueError: If ``pretrained`` cannot be read: see
            :func:`resolve_pretrained` and :func:`open_weights`.
    """

    def __init__(self, pretrained: str | Path | Mapping[str, Any] | ModelSource) -> None:
        source = ModelSource.parse(pretrained)
        self.source = source
        self.name = str(source.model)
        self.argument = 'pretrained'
        self.hub_kwargs = hub_kwargs = source.hub_kwargs
        file = weights_file('pretrained', source.model)
        # A revision is one of the repository that it was given for.
        elsewhere = {key: value for key, value in hub_kwargs.items() if key != 'revision'}
        self.base = None if source.base is None else self._open_base(source.base, elsewhere)
        self.file = None
        if file is not None:
            self.path = str(file)
            self.file = open_weights(
                file, self.name, None if self.base is None else self.base.config, source.original
            )
        elif source.original is not None:
            raise ValueError(
                f'original={shorten(source.original)} says what a file of weights holds, and '
                f'pretrained={self.name!r} is not such a file'
            )
        elif self.base is None:
            self.path = resolve_pretrained(source.model)
        else:
            self.path = resolve_folder('pretrained', source.model)
        self._vae = None if source.vae is None else _find_vae(source.vae, elsewhere)
        self._parts: dict[str, Part] = {}

    @staticmethod
    def _open_base(base: str | Path, hub_kwargs: dict[str, Any]) -> PipelineSource:
        if weights_file('base', base) is not None:
            raise ValueError(
                f'base={str(base)!r} is a file of weights: give the hub id or the folder of a '
                f'whole pipeline, which scheduler and VAE are read from'
            )
        resolve_pretrained(base, 'base')
        source = PipelineSource(ModelSource(base, **hub_kwargs))
        source.argument = 'base'
        return source

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    def as_read(self) -> ModelSource:
        """The description, with the commit that was read in place of a branch or no revision."""
        if self.is_local or self.file is not None:
            return self.source
        commit = Repository('pretrained', self.path, self.hub_kwargs).cached_commit()
        return self.source if commit is None else replace(self.source, revision=commit)

    @property
    def pipeline(self) -> PipelineSource:
        """The pipeline that scheduler, VAE and text encoders come from: ``base``, or itself."""
        return self.base or self

    # -- where parts are --------------------------------------------------------------------------
    def part(self, kind: str) -> Part:
        """A part that is in diffusers' layout: ``'transformer'``, ``'vae'``, ``'scheduler'``."""
        if kind not in self._parts:
            self._parts[kind] = self._find(kind)
        return self._parts[kind]

    def _find(self, kind: str) -> Part:
        if kind == 'vae' and self._vae is not None:
            return self._vae
        if kind != 'transformer' and self.base is not None:
            return self.base.part(kind)
        if isinstance(self.file, OriginalFile) and kind == 'vae':
            return Part('vae', DEFAULT_VAE, DEFAULT_VAE, kind, None, self.hub_kwargs, _NO_VAE)
        found = self._usual(kind)
        if kind == 'transformer' and self.base is not None:
            return self._find_transformer(found)
        return found

    def _usual(self, kind: str) -> Part:
        return Part(self.argument, self.name, self.path, kind, kind, self.hub_kwargs)

    def _own_vae(self) -> Part:
        """The pipeline's own VAE, be it replaced or not."""
        return self._usual('vae') if self.base is None else self.base.part('vae')

    def _find_transformer(self, usual: Part) -> Part:
        """The transformer next to a ``base``: in its folder, or all that there is."""
        alone = Part(self.argument, self.name, self.path, usual.kind, None, self.hub_kwargs)
        if self.is_local:
            for found in (usual, alone):
                if (found.folder / 'config.json').is_file():
                    return found
            # Says what is there instead, as for a pipeline.
            resolve_pretrained(self.path)
        try:
            usual.config()
        except NotOnHub:
            return alone
        return usual

    def naming(
        self, part: str, load_kwargs: Mapping[str, Any] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Whatever goes wrong inside is an error that names the part, and the file if it is one.

        Args:
            part: The part, or a file of it, such as ``'transformer/config.json'``.
            load_kwargs: What a user added to the arguments of diffusers, which may be the cause.
        """
        kind, _, file = part.partition('/')
        if self.file is not None and (kind == 'transformer' or self.base is None):
            return naming_part(f'pretrained={self.name!r}: {part}', self.name, load_kwargs)
        found = self.part(kind)
        if file:
            return naming_part(found.place(part), found.name, load_kwargs)
        return found.naming(load_kwargs)

    def config(self, kind: str) -> PartConfig:
        """The config of one part.

        Raises:
            FileNotFoundError: If it cannot be read; the message says what was tried and what to do.
        """
        if self.file is not None:
            if kind == 'transformer':
                return self.file.config
            if kind == 'scheduler' and isinstance(self.file, OriginalFile):
                return self.file.scheduler
        return self.part(kind).config()

    def index(self) -> PartConfig:
        """The pipeline's ``model_index.json``: its class, and library and class of each part.

        Raises:
            FileNotFoundError: If it cannot be read.
        """
        if self.base is not None:
            return self.base.index()
        place = f'{self.argument}={self.name!r}'
        # The second is of a pipeline that is put together from blocks.
        names = ('model_index.json', 'modular_model_index.json')
        try:
            try:
                file, found = self._file(names[0]), names[0]
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    file, found = self._file(names[1]), names[1]
                    entries = diffusers.ModularPipeline.load_config(file)
                    return PartConfig(dict(entries), f'{place}: {found}')
                raise
            return PartConfig(
                dict(diffusers.DiffusionPipeline.load_config(file)), f'{place}: {found}'
            )
        except HubError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FileNotFoundError(
                f'{place}: cannot read model_index.json, which names the parts '
                f'of a pipeline ({error})'
            ) from error

    def _file(self, name: str) -> Path:
        """A small file outside of the folders of parts."""
        if not self.is_local:
            return Repository(f'{self.argument}={self.name!r}', self.path, self.hub_kwargs).file(
                name
            )
        file = Path(self.path, name)
        if not file.is_file():
            raise FileNotFoundError(f'there is no file {file}')
        return file

    def folder(self, parts: Collection[str]) -> Path:
        """A folder that has some parts besides transformer and VAE, downloaded if need be.

        Args:
            parts: Text encoders, tokenizers, ... by the names of their folders.
        """
        if self.is_local:
            return Path(self.path)
        repository = Repository(f'{self.argument}={self.name!r}', self.path, self.hub_kwargs)
        try:
            root = repository.file('model_index.json').parent
        except NotOnHub:  # a pipeline that is put together from blocks
            root = repository.file('modular_model_index.json').parent
        for part in parts:
            repository.folder(part, self.hub_kwargs.get('variant'), of_diffusers=False)
        return root

    def has_vae(self) -> bool:
        """Whether the model works on latents."""
        return self._vae is not None or self._has_own_vae()

    def _has_own_vae(self) -> bool:
        if self.base is not None:
            return self.base.has_vae()
        if isinstance(self.file, OriginalFile):
            return not self.file.in_pixels
        if self.is_local:
            if (Path(self.path) / 'vae').is_dir():
                return True
            if not (Path(self.path) / 'model_index.json').is_file():
                return False
            if _names_a_part(self.index().get('vae')):
                raise FileNotFoundError(
                    f'{self.argument}={self.name!r}: model_index.json names a vae, and there is '
                    f'no folder vae/. {REPAIR}'
                )
            return False
        return _names_a_part(self.index().get('vae'))

    # -- reading ----------------------------------------------------------------------------------
    def transformer(
        self,
        class_name: str,
        overrides: Mapping[str, Any],
        trim: Callable[[nn.Module], None],
        dtype: torch.dtype,
        layout: OriginalLayout | None = None,
        **load_kwargs: Any,
    ) -> nn.Module:
        """Build the needed part of the transformer with its weights.

        Args:
            class_name: The diffusers class.
            overrides: Config entries that stand instead of those on disk.
            trim: Drops, before any weight is read, what the config cannot leave out.
            dtype: Precision of the weights.
            layout: The layout of single files that diffusers converts for this class.
            load_kwargs: Passed to ``from_pretrained``: ``quantization_config``, ``device_map``, ...

        Raises:
            RuntimeError: If weights of a needed block are missing from the checkpoint.
        """
        config_entries = list(inspect.signature(getattr(diffusers, class_name)).parameters)
        keywords('load_kwargs', load_kwargs, [*LOAD_KWARGS, *config_entries])
        quantization = load_kwargs.get('quantization_config')
        cls = _trimmed(getattr(diffusers, class_name), trim)
        with (
            _quiet_about_unused_weights(),
            self.naming('transformer', load_kwargs),
            self._quantizing(quantization),
        ):
            file, info = self.file, None
            if file is None:
                part = self.part('transformer')
                scaled = part.scaled()
                if scaled is not None:
                    file = SingleFile(scaled, part.folder, self.name, part.config())
            if isinstance(file, SingleFile):
                model = file.load(cls, overrides, dtype, load_kwargs, layout)
            elif file is not None:
                model = file.load(cls, overrides, dtype, load_kwargs)
            else:
                model, info = part.read(cls, torch_dtype=dtype, **overrides, **load_kwargs)
        model.__class__ = cls.__base__
        if info is not None:
            part.check_whole(model, info)
        return model

    @contextlib.contextmanager
    def _quantizing(self, config: Any) -> Iterator[None]:
        """What is wrong with a quantization config is an error that says so.

        Raises:
            ValueError: If it is not a config, or does not fit the weights: a config of GGUF goes
                with a file of GGUF, and no other does.
            ImportError: If the package that quantizes is not installed.
        """
        if config is None:
            with self._quantized():
                yield
            return
        place = f'{self.argument}={self.name!r}: load_kwargs: quantization_config={shorten(config)}'
        own = None if self.file is not None else self.part('transformer').config()
        if own is not None and 'quantization_config' in own:
            raise ValueError(f'{place}: its weights are quantized already: leave that out')
        is_dict = isinstance(config, Mapping) and (
            {'quant_method', 'load_in_8bit', 'load_in_4bit'} & config.keys()
        )
        if not is_dict and not hasattr(config, 'quant_method'):
            raise ValueError(
                f'{place} is not a config: give one of diffusers, such as TorchAoConfig(...), or a '
                f"dict: dict(load_in_8bit=True), dict(quant_method='quanto', weights_dtype='int8')"
            )
        is_gguf = self.file is not None and Path(self.path).suffix.lower() == GGUF
        if is_gguf != isinstance(config, diffusers.GGUFQuantizationConfig):
            raise ValueError(
                f'{place} does not fit {"a" if is_gguf else "what is not a"} GGUF file: GGUF '
                f'weights are read from files that hold them, without a config; others are '
                f'quantized as they are read'
            )
        try:
            yield
        except ImportError as error:
            raise ImportError(
                f'{place}: the package that quantizes is not installed, or too old ({error})'
            ) from error
        except MissingWeights:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(f'{place} does not work here: {error}') from error

    @contextlib.contextmanager
    def _quantized(self) -> Iterator[None]:
        """What is wrong with weights that were quantized before they were saved is named."""
        config = {} if self.file is not None else self.part('transformer').config()
        entries = config.get('quantization_config')
        try:
            yield
        except (MissingWeights, torch.OutOfMemoryError):
            raise
        except (ImportError, RuntimeError, NotImplementedError, ValueError, KeyError) as error:
            if entries is None or self.name in str(error):
                raise
            method = entries.get('quant_method') if isinstance(entries, Mapping) else entries
            kind = ImportError if isinstance(error, ImportError) else ValueError
            raise kind(
                f'{self.argument}={self.name!r}: transformer/config.json says that its weights are '
                f'quantized by {method!r}, which cannot be read here: {error}'
            ) from error

    def codec(self, dtype: torch.dtype) -> Codec:
        """The image encoder, or a ``PixelCodec`` where there is no VAE."""
        if not self.has_vae():
            return PixelCodec()
        part = self.part('vae')
        config = part.config()
        name = config['_class_name']
        try:
            wrap = codec_class(name)
        except ValueError as error:
            raise ValueError(f'{config.where}: {error}') from error
        check_entries(config, getattr(diffusers, name))
        # Some VAEs overflow in half precision and say so.
        if config.get('force_upcast') and dtype == torch.float16:
            dtype = torch.float32
        with part.naming():
            vae, info = part.read(getattr(diffusers, name), torch_dtype=dtype)
            codec = wrap(vae)
        part.check_whole(vae, info)
        if self._vae is not None and self._has_own_vae():
            self._check_vae(codec)
        if self.file is None and part.lacks_variant and self.part('transformer').lacks_variant:
            raise ValueError(
                f'pretrained={self.name!r}: no part has weights of '
                f'variant={self.hub_kwargs.get("variant")!r}: leave it out, or give one that there '
                f'is'
            )
        return codec

    def _check_vae(self, codec: KLCodec) -> None:
        """Check that latents of a replacement are those of the pipeline's own VAE."""
        if self.base is None and self.file is not None:
            return  # of a file of the DiT kind, all that is known is the number of channels
        config = self._own_vae().config()
        cls = getattr(diffusers, config['_class_name'])
        with torch.device('meta'):
            own = codec_class(config['_class_name'])(cls.from_config(dict(config)))
        check_replacement(codec, own, self.part('vae').place())


def _find_vae(vae: str | Path, hub_kwargs: dict[str, Any]) -> Part:
    """Where the VAE lies that a user named: alone, or in a pipeline."""
    if weights_file('vae', vae) is not None:
        raise ValueError(
            f'vae={str(vae)!r} is a file of weights, and has no config: convert it once by '
            f"diffusers' `AutoencoderKL.from_single_file(FILE).save_pretrained(FOLDER)`, and give "
            f'that folder'
        )
    where = resolve_folder('vae', vae)
    alone, inside = (
        Part('vae', str(vae), where, 'vae', subfolder, hub_kwargs) for subfolder in (None, 'vae')
    )
    if not alone.is_local:
        try:
            names_a_vae = alone.config().get('_class_name', '').startswith('Autoencoder')
        except (NotOnHub, ValueError):
            names_a_vae = False
        return alone if names_a_vae else inside
    for found in (alone, inside):
        if (found.folder / 'config.json').is_file():
            return found
    raise ValueError(
        f'vae={str(vae)!r} holds no VAE: there is neither a config.json nor a vae/config.json'
    )


def _names_a_part(entry: Any) -> bool:
    """Whether an entry of a ``model_index.json``, (library, class), is one of a part.

    That of a ``modular_model_index.json`` has a third member, where the part is loaded from.
    """
    is_entry = isinstance(entry, (list, tuple)) and bool(entry)
    return is_entry and (bool(entry[0]) or (len(entry) == 3 and bool(entry[2])))

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Reading a diffusers pipeline, hub id or local folder, part by part.

Nothing here builds a whole pipeline: a transformer's first blocks, a VAE's encoder and two configs
are all that feature extraction needs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmaselect.checks import keywords, path, shorten
from mmaselect.diffusion.codec import PixelCodec, codec_class
from mmaselect.diffusion.damage import REPAIR, PartConfig, check_entries, weights_problem

logger = logging.getLogger(__name__)

#: Prefix of the models that ship with the package.
SHIPPED_PREFIX = 'mmaselect://'
WEIGHTS_DIR = Path(__file__).resolve().parents[1] / 'weights'

LAYOUT_HELP = (
    "expected diffusers' pipeline layout: transformer/config.json with its weights, "
    'scheduler/scheduler_config.json and, for a model that works on latents, '
    'vae/config.json with its weights'
)

#: What says where files are found on the hub.
HUB_KWARGS = (
    'revision', 'variant', 'cache_dir', 'token', 'local_files_only', 'force_download', 'proxies'
)  # fmt: skip

_HUB_TYPES = {
    'revision': (str,),
    'variant': (str,),
    'cache_dir': (str, Path),
    'token': (str, bool),
    'local_files_only': (bool,),
    'force_download': (bool,),
}

#: What diffusers' ``from_pretrained`` of a model takes beside the entries of its config.
LOAD_KWARGS = (
    'device_map', 'max_memory', 'quantization_config', 'low_cpu_mem_usage', 'use_safetensors',
    'disable_mmap', 'offload_folder', 'offload_state_dict', 'ignore_mismatched_sizes',
    'variant',
)  # fmt: skip

_DTYPES = {
    'fp32': torch.float32,
    'float32': torch.float32,
    'fp16': torch.float16,
    'float16': torch.float16,
    'bf16': torch.bfloat16,
    'bfloat16': torch.bfloat16,
}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``'fp16'``, ``'bf16'``, ``'fp32'`` (or torch's own names and dtypes) as a torch dtype."""
    if isinstance(dtype, torch.dtype):
        if dtype in _DTYPES.values():
            return dtype
    elif str(dtype).removeprefix('torch.') in _DTYPES:
        return _DTYPES[str(dtype).removeprefix('torch.')]
    raise ValueError(f"dtype {dtype!r} is not supported: use 'fp32', 'fp16' or 'bf16'")


def resolve_pretrained(pretrained: str | Path) -> str:
    """A local folder (checked) or a hub id from what the user wrote.

    Raises:
        FileNotFoundError: If it reads like a path and there is no such folder.
        ValueError: If it is a folder without a ``transformer/config.json``.
    """
    name = str(path('pretrained', pretrained))
    if name.startswith(SHIPPED_PREFIX):
        shipped_name = name.removeprefix(SHIPPED_PREFIX)
        folder = WEIGHTS_DIR / shipped_name
        # A name, not a path: '../x' and '/x' would leave the package.
        if (
            not re.fullmatch(r'[\w-]+', shipped_name)
            or not (folder / 'transformer' / 'config.json').is_file()
        ):
            shipped = sorted(
                p.parents[1].name for p in WEIGHTS_DIR.glob('*/transformer/config.json')
            )
            raise FileNotFoundError(
                f'pretrained={name!r} does not ship with mmaselect. Shipped models: '
                f'{", ".join(SHIPPED_PREFIX + s for s in shipped) or "none"}'
            )
        return str(folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / 'transformer' / 'config.json').is_file():
            found = sorted(p.name for p in folder.iterdir())[:10]
            raise ValueError(
                f'pretrained={name!r} is not a pipeline folder: it has no transformer/config.json '
                f'(found: {", ".join(found) or "nothing"}); {LAYOUT_HELP}'
            )
        return str(folder)
    # A hub id is 'name' or 'organization/name'; anything else can only be meant as a path.
    looks_like_path = name.startswith(('/', '.', '~')) or name.count('/') != 1 or '\\' in name
    if looks_like_path:
        raise FileNotFoundError(
            f'pretrained={name!r}: there is no such folder. Give a hub id such as '
            f"'facebook/DiT-XL-2-256', a model that ships with mmaselect such as "
            f"'{SHIPPED_PREFIX}dit_cifar10', or a local folder; {LAYOUT_HELP}"
        )
    return name


def sample_values(tensor: Tensor, count: int) -> Tensor:
    """At least ``count`` values from all over a weight (all of a smaller one), float32, on the CPU.

    Quantized weights are read as the values they stand for. A weight that an offloading device map
    keeps elsewhere (on the meta device) has none to give: an empty tensor.
    """
    tensor = tensor.detach()
    if tensor.is_meta:
        return torch.empty(0)
    if is_traceable_wrapper_subclass(tensor):
        tensor = tensor.dequantize()
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // count)].float().cpu()


@contextlib.contextmanager
def _quiet_about_unused_weights() -> Iterator[None]:
    """Leaving blocks out is the point here; diffusers would list each of their weights."""
    logger = logging.getLogger('diffusers.models.modeling_utils')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _trimmed(cls: type[nn.Module], trim: Callable[[nn.Module], None]) -> type[nn.Module]:
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
    """A pipeline on disk or on the hub, whose parts are read one at a time.

    Args:
        pretrained: Hub id, local folder, or ``mmaselect://NAME``.
        hub_kwargs: What diffusers' ``from_pretrained`` takes to find files: ``revision``,
            ``variant``, ``cache_dir``, ``token``, ``local_files_only``.

    Raises:
        FileNotFoundError, ValueError: See :func:`resolve_pretrained`.
    """

    def __init__(self, pretrained: str | Path, **hub_kwargs: Any) -> None:
        keywords('hub_kwargs', hub_kwargs, HUB_KWARGS)
        for name, kinds in _HUB_TYPES.items():
            value = hub_kwargs.get(name)
            if value is not None and not isinstance(value, kinds):
                wanted = ' or '.join(kind.__name__ for kind in kinds)
                raise ValueError(f'hub_kwargs: {name} must be {wanted}, got {shorten(value)}')
        self.name = str(pretrained)
        self.path = resolve_pretrained(pretrained)
        self.hub_kwargs = hub_kwargs
        #: Parts that had no weights of the wanted variant.
        self.without_variant: list[str] = []

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    def place(self, file: str) -> str:
        """What messages call a file of the pipeline."""
        return f'pretrained={self.name!r}: {file}'

    @contextlib.contextmanager
    def naming(
        self, subfolder: str, load_kwargs: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Whatever goes wrong inside is an error that names the part, and the file if it is one.

        Args:
            subfolder: The part.
            load_kwargs: What a user added to the arguments of diffusers, which may be the cause.

        Raises:
            ValueError: In place of what was raised; memory that ran out stays what it is.
        """
        try:
            yield
        except (MemoryError, ImportError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(error, (ValueError, FileNotFoundError)) and self.name in str(error):
                raise  # it names the file already
            problem = None
            if self.is_local and subfolder in ('transformer', 'vae'):
                problem = weights_problem(Path(self.path) / subfolder)
            if problem is not None:
                raise ValueError(f'pretrained={self.name!r}: {problem}. {REPAIR}') from error
            given = f', or load_kwargs={shorten(load_kwargs)} does not fit' if load_kwargs else ''
            raise ValueError(
                f'{self.place(subfolder)} cannot be built: {type(error).__name__}: {error}. Its '
                f'config and its weights do not belong together{given}. {REPAIR}'
            ) from error

    def read(
        self, cls: type[nn.Module], subfolder: str, **kwargs: Any
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A part with its weights, and what diffusers says of how it loaded them.

        As diffusers' own pipelines do it, a part that has no files of the wanted ``variant`` is
        read without.

        Args:
            cls: Class of the part.
            subfolder: The part.
            kwargs: Of diffusers' ``from_pretrained``.
        """
        variant = kwargs.get('variant')
        try:
            return cls.from_pretrained(
                self.path, subfolder=subfolder, output_loading_info=True, **kwargs
            )
        except OSError:
            if variant is None or subfolder in self.without_variant:
                raise
            self.without_variant.append(subfolder)
            kwargs = {**kwargs, 'variant': None}
            loaded = self.read(cls, subfolder, **kwargs)
            logger.warning(
                '%s has no weights of variant=%r: those without a variant are read',
                self.place(subfolder),
                variant,
            )
            return loaded

    def config(self, subfolder: str) -> PartConfig:
        """The config of one part.

        Raises:
            FileNotFoundError: If it cannot be read; the message says what was tried and what to do.
        """
        name = 'scheduler_config.json' if subfolder == 'scheduler' else 'config.json'

        class Reader(ConfigMixin):
            config_name = name

        kwargs = {k: v for k, v in self.hub_kwargs.items() if k != 'variant'}
        try:
            entries = dict(Reader.load_config(self.path, subfolder=subfolder, **kwargs))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            hint = (
                LAYOUT_HELP
                if self.is_local
                else 'the hub could not be reached, the id is wrong, or the model is gated: accept '
                'its license on its page and run `hf auth login`, or download it once and give '
                'the local folder'
            )
            raise FileNotFoundError(
                f'pretrained={self.name!r}: cannot read {subfolder}/{name} ({error}). {hint}'
            ) from error
        config = PartConfig(entries, self.place(f'{subfolder}/{name}'))
        config['_class_name']  # says so if there is none
        return config

    def has_vae(self) -> bool:
        """Whether the pipeline works on latents."""
        if self.is_local:
            if (Path(self.path) / 'vae').is_dir():
                return True
            if not (Path(self.path) / 'model_index.json').is_file():
                return False
            if _names_a_part(self.index().get('vae')):
                raise FileNotFoundError(
                    f'pretrained={self.name!r}: model_index.json names a vae, and there is no '
                    f'folder vae/. {REPAIR}'
                )
            return False
        index = self.index()
        return _names_a_part(index.get('vae'))

    def index(self) -> PartConfig:
        """The pipeline's ``model_index.json``: its class, and library and class of each part.

        Raises:
            FileNotFoundError: If it cannot be read.
        """
        kwargs = {k: v for k, v in self.hub_kwargs.items() if k != 'variant'}
        try:
            entries = diffusers.DiffusionPipeline.load_config(self.path, **kwargs)
            return PartConfig(dict(entries), self.place('model_index.json'))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FileNotFoundError(
                f'pretrained={self.name!r}: cannot read model_index.json, which names the parts '
                f'of a pipeline ({error})'
            ) from error

    def transformer(
        self,
        class_name: str,
        overrides: Mapping[str, Any],
        trim: Callable[[nn.Module], None],
        dtype: torch.dtype,
        **load_kwargs: Any,
    ) -> nn.Module:
        """Build the needed part of the transformer with its weights.

        Args:
            class_name: The diffusers class.
            overrides: Config entries that stand instead of those on disk.
            trim: Drops, before any weight is read, what the config cannot leave out.
            dtype: Of the weights.
            load_kwargs: Passed to ``from_pretrained``: ``quantization_config``, ``device_map``, ...

        Raises:
            RuntimeError: If weights of a needed block are missing from the checkpoint.
        """
        config_entries = list(inspect.signature(getattr(diffusers, class_name)).parameters)
        keywords('load_kwargs', load_kwargs, [*LOAD_KWARGS, *config_entries])
        cls = _trimmed(getattr(diffusers, class_name), trim)
        kwargs = {'torch_dtype': dtype, **self.hub_kwargs, **load_kwargs}
        with _quiet_about_unused_weights(), self.naming('transformer', load_kwargs):
            model, info = self.read(cls, 'transformer', **overrides, **kwargs)
        model.__class__ = cls.__base__
        self._check_whole('transformer', model, info)
        return model

    def _check_whole(self, subfolder: str, model: nn.Module, info: Mapping[str, Any]) -> None:
        """Raise a RuntimeError if weights were missing, and are random now."""
        # Buffers are computed by the constructor; older checkpoints hold fewer of them.
        lost = sorted({*info['missing_keys']} & {name for name, _ in model.named_parameters()})
        if lost:
            raise RuntimeError(
                f'pretrained={self.name!r}: {subfolder}: the checkpoint lacks {len(lost)} weights '
                f'that are needed (first: {lost[:3]}), so features would come from random weights. '
                f'The config and the weights do not belong together, or the download is incomplete'
            )

    def codec(self, dtype: torch.dtype) -> nn.Module:
        """The pipeline's image encoder, or a ``PixelCodec`` where it has no VAE."""
        if not self.has_vae():
            return PixelCodec()
        config = self.config('vae')
        name = config['_class_name']
        try:
            wrap = codec_class(name)
        except ValueError as error:
            raise ValueError(f'{config.where}: {error}') from error
        check_entries(config, getattr(diffusers, name))
        # Some VAEs overflow in half precision and say so.
        if config.get('force_upcast') and dtype == torch.float16:
            dtype = torch.float32
        with self.naming('vae'):
            vae, info = self.read(
                getattr(diffusers, name), 'vae', torch_dtype=dtype, **self.hub_kwargs
            )
            codec = wrap(vae)
        self._check_whole('vae', vae, info)
        if len(self.without_variant) == 2:
            raise ValueError(
                f'pretrained={self.name!r}: no part has weights of '
                f'variant={self.hub_kwargs.get("variant")!r}: leave it out, or give one that there '
                f'is'
            )
        return codec


def _names_a_part(entry: Any) -> bool:
    """Whether an entry of a ``model_index.json``, (library, class), is one of a part."""
    return isinstance(entry, (list, tuple)) and bool(entry) and bool(entry[0])

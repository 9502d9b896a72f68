# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One part of a pipeline: where it lies, its config, its weights."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mmaselect.checks import shorten
from mmaselect.diffusion.diagnose import REPAIR, PartConfig, weights_problem
from mmaselect.diffusion.hub import HubError, Repository
from mmaselect.diffusion.locate import (
    LAYOUT_HELP,
    SAFETENSORS,
    WEIGHTS_NAME,
    variant_of,
    weights_of,
)
from mmaselect.diffusion.scales import ScaledTensors

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)


class MissingWeights(RuntimeError):
    """Weights that are needed are not there."""


@contextlib.contextmanager
def naming_part(
    title: str, name: str, load_kwargs: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Iterator[None]:
    """Whatever goes wrong inside is an error that names the part, and the file if it is one.

    Args:
        title: What messages call the part.
        name: What the user called the model.
        load_kwargs: What a user added to the arguments of diffusers, which may be the cause.
        folder: Local folder of the part's weights, to be looked through for damage.

    Raises:
        ValueError: In place of what was raised; memory that ran out stays what it is.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        if name in str(error):
            raise
        raise ImportError(
            f'{title} needs a package that is not installed, or is too old: {error}'
        ) from error
    except Exception as error:
        named = isinstance(error, (ValueError, FileNotFoundError, MissingWeights))
        if named and name in str(error):
            raise  # it names the file already
        problem = None if folder is None else weights_problem(folder)
        if problem is not None:
            raise ValueError(f'{title.partition(": ")[0]}: {problem}. {REPAIR}') from error
        given = f', or load_kwargs={shorten(load_kwargs)} does not fit' if load_kwargs else ''
        raise ValueError(
            f'{title} cannot be built: {type(error).__name__}: {error}. Its '
            f'config and its weights do not belong together{given}. {REPAIR}'
        ) from error


@dataclass
class Part:
    """A part in diffusers' layout, in a local folder or on the hub.

    Attributes:
        argument: The argument that named it, for messages.
        name: What the user wrote there.
        path: Local folder or hub id.
        kind: ``'transformer'``, ``'vae'`` or ``'scheduler'``.
        subfolder: Where it lies; None if the part is all that there is.
        hub_kwargs: What diffusers' ``from_pretrained`` takes to find files.
        advice: What to do if it cannot be read, next to the usual.
        lacks_variant: Whether it had no weights of the wanted variant.
    """

    argument: str
    name: str
    path: str
    kind: str
    subfolder: str | None
    hub_kwargs: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ''
    lacks_variant: bool = False

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    @property
    def folder(self) -> Path:
        """Where it lies, if that is a local folder."""
        return Path(self.path, self.subfolder or '')

    def place(self, file: str | None = None) -> str:
        """What messages call it, or a file of it."""
        return f'{self.argument}={self.name!r}: {self.kind if file is None else file}'

    def naming(
        self, load_kwargs: Mapping[str, Any] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """See :func:`naming_part`."""
        weights = self.folder if self.is_local and self.kind != 'scheduler' else None
        return naming_part(self.place(), self.name, load_kwargs, weights)

    def config(self) -> PartConfig:
        """Its config.

        Raises:
            FileNotFoundError: If it cannot be read; the message says what was tried and what to do.
        """
        name = 'scheduler_config.json' if self.kind == 'scheduler' else 'config.json'
        file = name if self.subfolder is None else f'{self.subfolder}/{name}'

        class Reader(ConfigMixin):
            config_name = name

        try:
            place = self.folder / name if self.is_local else self.repository.file(file)
            entries = dict(Reader.load_config(place))
        except HubError as error:
            raise type(error)(f'{error}{self.advice}') from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FileNotFoundError(
                f'{self.argument}={self.name!r}: cannot read {file} ({error}). '
                f'{LAYOUT_HELP}{self.advice}'
            ) from error
        if '_class_name' not in entries:
            entries.update(self._class_by_index())
        config = PartConfig(entries, self.place(file))
        config['_class_name']  # says so if there is none
        return config

    @property
    def repository(self) -> Repository:
        """The repository on the hub that has it."""
        return Repository(f'{self.argument}={self.name!r}', self.path, self.hub_kwargs)

    def fetch(self) -> None:
        """Have its files on this machine; from then on it is a folder.

        Raises:
            HubError: If they cannot be downloaded.
        """
        if not self.is_local:
            try:
                root = self.repository.folder(self.subfolder, self.hub_kwargs.get('variant'))
            except HubError as error:
                raise type(error)(f'{error}{self.advice}') from error
            self.path = str(root)

    def _class_by_index(self) -> dict[str, str]:
        """Class of the part as the pipeline's index has it: Kandinsky 6 names it there alone."""

        class Reader(ConfigMixin):
            config_name = 'model_index.json'

        try:
            name = 'model_index.json'
            place = Path(self.path, name) if self.is_local else self.repository.file(name)
            entry = dict(Reader.load_config(place)).get(self.kind)
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            return {'_class_name': entry[1]}
        return {}

    def read(self, cls: type[ModelMixin], **kwargs: Any) -> tuple[ModelMixin, dict[str, Any]]:
        """It with its weights, and what diffusers says of how it loaded them.

        As diffusers' own pipelines do it, a part that has no files of the wanted ``variant`` is
        read without.

        Args:
            cls: Class of the part.
            kwargs: Kwargs of diffusers' ``from_pretrained``, next to those that find files.
        """
        self.fetch()
        kwargs = {**self.hub_kwargs, **kwargs}
        variant = kwargs.get('variant')
        try:
            return self._read(cls, **kwargs)
        except OSError as error:
            if variant is None:
                self._refuse_variants(error)
                raise
            self.lacks_variant = True
            loaded = self._read(cls, **{**kwargs, 'variant': None})
            logger.warning(
                '%s has no weights of variant=%r: those without a variant are read',
                self.place(),
                variant,
            )
            return loaded

    def _read(self, cls: type[ModelMixin], **kwargs: Any) -> tuple[ModelMixin, dict[str, Any]]:
        return cls.from_pretrained(
            self.path, subfolder=self.subfolder, output_loading_info=True, **kwargs
        )

    def _refuse_variants(self, error: OSError) -> None:
        """Say so where there are weights of a variant alone, and none was asked for."""
        if not self.is_local or not self.folder.is_dir():
            return
        files = [file.name for file in self.folder.iterdir()]
        found = sorted({variant_of(file) for file in files if file.startswith(WEIGHTS_NAME)})
        if found and not weights_of(files, None):
            raise ValueError(
                f'{self.place()} has weights of variant {", ".join(found)} alone: set '
                f'variant={found[0]!r}'
            ) from error

    def scaled(self) -> ScaledTensors | None:
        """Its weights, where they lie in a folder with the scales of weights of eight bits.

        Raises:
            ValueError: If there are scales that cannot be applied.
        """
        self.fetch()
        if not self.folder.is_dir() or 'quantization_config' in self.config():
            return None
        files = [file.name for file in self.folder.iterdir() if file.suffix == SAFETENSORS]
        variant = self.hub_kwargs.get('variant')
        files = weights_of(files, variant) or weights_of(files, None)
        tensors = {}
        try:
            for file in files:
                tensors.update(load_file(self.folder / file))  # mapped, not read
        except (OSError, SafetensorError):
            return None  # diffusers meets it, too, and is asked what is wrong
        found = ScaledTensors(tensors, self.place())
        return found if found.are_scaled else None

    def check_whole(self, model: nn.Module, info: Mapping[str, Any]) -> None:
        """Check that every weight was read, and every entry of the files used.

        Args:
            model: The part, of which superfluous blocks may be missing.
            info: What diffusers says of how it loaded it.

        Raises:
            MissingWeights: If weights were missing, and are random now.
            ValueError: If the files have an entry that no module takes.
        """
        # Buffers are computed by the constructor; older checkpoints hold fewer of them.
        lost = sorted({*info['missing_keys']} & {name for name, _ in model.named_parameters()})
        refuse_missing(self.place(), lost)

        def whole() -> nn.Module:
            with torch.device('meta'):
                return type(model).from_config(dict(self.config()))  # type: ignore[attr-defined]

        strays = set(info['unexpected_keys'])
        if self.kind == 'vae':
            strays = {name for name in strays if not name.startswith(_DECODER)}
        refuse_strays(self.place(), strays, model, whole)


def refuse_missing(place: str, lost: list[str]) -> None:
    """Raise :class:`MissingWeights` if needed weights are missing.

    Args:
        place: What messages call the part.
        lost: Names of the missing weights.
    """
    if lost:
        raise MissingWeights(
            f'{place}: the checkpoint lacks {len(lost)} weights '
            f'that are needed (first: {lost[:3]}), so features would come from random weights. '
            f'The config and the weights do not belong together, or the download is incomplete'
        )


#: Entries that published files have and that no module computes with: what PixArt puts in place of
#: a caption that is dropped in training.
_HARMLESS = re.compile(r'(.*\.)?y_embedding')
#: The half of a VAE that is not read.
_DECODER = ('decoder.', 'post_quant_conv.')


def refuse_strays(
    place: str, names: Collection[str], model: nn.Module, whole: Callable[[], nn.Module]
) -> None:
    """Raise a ValueError if a file has entries that belong to a module, which does not take them.

    Scales of quantized weights, adapters and weights of a variant of a model are such entries:
    without them, features would be others. Entries of blocks that are not built may be anything.

    Args:
        place: What messages call the part.
        names: Entries that nothing was done with, under the names of the model's class.
        model: What was built.
        whole: Builds all of the model, on the meta device.
    """
    names = {name for name in names if not _is_beyond(name, model)}
    strays = {name for name in names if not _HARMLESS.fullmatch(name)}
    if not strays:
        return
    complete = whole()
    known = {name for name, _ in (*complete.named_parameters(), *complete.named_buffers())}
    left_out = {name for name, _ in complete.named_modules()} - {
        name for name, _ in model.named_modules()
    }
    strays = {
        name
        for name in strays - known
        if not any(name.startswith(f'{module}.') for module in left_out)
    }
    if strays:
        first = ', '.join(sorted(strays)[:3])
        raise ValueError(
            f'{place}: {type(model).__name__} takes no {first}: the files have {len(strays)} '
            f'entries for modules that are read, and that these modules do not take. They may be '
            f'scales of quantized weights, adapters, or layers of another version, so that '
            f'features would be wrong without them. Give the weights in bf16 or fp16; or, where '
            f'the entries mean nothing, without them (`from_pretrained` and `save_pretrained` of '
            f'diffusers write a folder that has none)'
        )


def _is_beyond(name: str, model: nn.Module) -> bool:
    """Whether an entry belongs to a block behind the last one that was built."""
    stack, _, rest = name.partition('.')
    blocks = getattr(model, stack, None)
    index = rest.partition('.')[0]
    return isinstance(blocks, nn.ModuleList) and index.isdecimal() and int(index) >= len(blocks)

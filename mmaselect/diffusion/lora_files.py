# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The files of a LoRA: its tensors, and the config that says how strongly they act."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mmaselect.checks import shorten
from mmaselect.diffusion.diagnose import LFS_POINTER, is_lfs_pointer
from mmaselect.diffusion.hub import HubError, NotOnHub, Repository
from mmaselect.diffusion.locate import PICKLED, SAFETENSORS
from mmaselect.diffusion.weight_files import read_tensors

_CONFIG = 'adapter_config.json'
#: As diffusers and peft name the file in a folder, in the order of preference.
_NAMES = (
    'pytorch_lora_weights.safetensors', 'adapter_model.safetensors', 'pytorch_lora_weights.bin',
    'adapter_model.bin',
)  # fmt: skip
#: Where diffusers keeps the config in the file itself.
_METADATA = 'lora_adapter_metadata'
#: Kinds of peft that are read.
_TYPES = ('LORA', 'LOKR')
#: Entries of a config that, if set, make a LoRA something else than a sum of products.
_REFUSED = (
    'use_qalora', 'layer_replication', 'trainable_token_indices', 'alora_invocation_tokens',
    'arrow_config', 'megatron_config', 'target_parameters', 'use_bdlora',
)  # fmt: skip
#: Ways to begin a LoRA that change the weights it is for.
_RESIDUAL = re.compile('pissa|olora|corda|loftq|lora_ga', re.IGNORECASE)


@dataclass(frozen=True)
class LoraFile:
    """The content of a LoRA.

    Attributes:
        where: What messages call it.
        tensors: By their names in the file.
        config: Config of peft; empty without one.
        config_name: Where the config was found.
    """

    where: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    config_name: str

    def __post_init__(self) -> None:
        kind = self.config.get('peft_type') or 'LORA'
        if kind not in _TYPES:
            raise ValueError(
                f'{self.where}: {self.config_name} says that it is of the kind {kind!r} of peft: '
                f'{" and ".join(_TYPES)} are read'
            )
        start = self.config.get('init_lora_weights')
        if isinstance(start, str) and _RESIDUAL.search(start):
            raise ValueError(
                f'{self.where}: {self.config_name} says init_lora_weights={start!r}, which changes '
                f"the model's own weights: convert it to a plain LoRA (see peft's documentation)"
            )
        odd = [name for name in _REFUSED if self.config.get(name)]
        if odd:
            raise ValueError(
                f'{self.where}: {self.config_name} sets {odd[0]}={shorten(self.config[odd[0]])}, '
                f'which is not read'
            )

    @property
    def root_of_rank(self) -> bool:
        """Whether alpha is divided by the root of the rank (rsLoRA, arXiv 2312.03732)."""
        return bool(self.config.get('use_rslora'))

    def rank(self, module: str) -> float | None:
        """The rank that the config says for a module; None if it says none."""
        return self._number(module, 'rank_pattern', 'r')

    def alpha(self, module: str) -> float | None:
        """The alpha that the config says for a module; None if it says none."""
        # LoKr has it under another name.
        entry = 'lora_alpha' if 'lora_alpha' in self.config else 'alpha'
        return self._number(module, 'alpha_pattern', entry)

    def _number(self, module: str, patterns: str, entry: str) -> float | None:
        value = self.config.get(entry)
        for pattern, special in (self.config.get(patterns) or {}).items():
            # As peft finds them: at the end of a name.
            if re.match(rf'(.*\.)?({pattern})$', module):
                value = special
                break
        if value is None:
            return None
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'{self.where}: {self.config_name}: {entry} must be a number, got {shorten(value)}'
            ) from error


def open_lora(found: str, where: str, hub_kwargs: Mapping[str, Any]) -> LoraFile:
    """Open a LoRA.

    Args:
        found: A file, a folder, or a hub id.
        where: What messages call it.
        hub_kwargs: Where on the hub files are found.

    Raises:
        FileNotFoundError: If there is no LoRA.
        ValueError: If its files are damaged, or it is of a kind that is not read.
    """
    if Path(found).is_file():
        file: Path = Path(found)
        # A config belongs to the only file of weights in its folder, or to that of peft.
        alone = len(_weights(file.parent)) == 1 or file.stem == 'adapter_model'
        config = file.parent / _CONFIG if alone else None
    elif Path(found).is_dir():
        file = Path(found) / _chosen([each.name for each in _weights(Path(found))], where)
        config = file.parent / _CONFIG
    else:
        file, config = _from_hub(found, where, hub_kwargs)
    if is_lfs_pointer(file):
        raise ValueError(f'{where}: {file.name} {LFS_POINTER}')
    tensors, _ = read_tensors(file, str(file), 'lora')
    entries: Any = None
    name = _CONFIG
    try:
        if config is not None and config.is_file():
            entries = json.loads(config.read_text(encoding='utf-8'))
        elif file.suffix.lower() == SAFETENSORS:
            name = "the file's metadata"
            with safe_open(file, framework='pt') as opened:
                entries = json.loads((opened.metadata() or {}).get(_METADATA) or 'null')
            if entries is not None:
                entries = {key.removeprefix('transformer.'): entries[key] for key in entries}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{where}: {name} is damaged ({error})') from error
    if entries is not None and not isinstance(entries, dict):
        raise ValueError(f'{where}: {name} is damaged: it must hold a dict')
    return LoraFile(where, tensors, entries or {}, name)


def _weights(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.suffix.lower() in (SAFETENSORS, *PICKLED)]


def _chosen(names: list[str], where: str) -> str:
    """The file of weights of a LoRA among those of a folder."""
    usual = [name for name in _NAMES if name in names]
    if usual:
        return usual[0]
    found = sorted([name for name in names if name.endswith(SAFETENSORS)] or names)
    if len(found) == 1:
        return found[0]
    raise FileNotFoundError(
        f'{where} holds {"no file" if not found else "several files"} of weights'
        f'{": " * bool(found)}{", ".join(found[:6])}. Give the path of the file'
    )


def _from_hub(repo: str, where: str, hub_kwargs: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """A LoRA's file on the hub, downloaded, and its config."""
    # A revision is one of the model.
    options = {key: value for key, value in hub_kwargs.items() if key != 'revision'}
    repository = Repository(where, repo, options)

    cached = next((name for name in _NAMES if _is_cached(repository, name)), None)
    if cached is None:
        suffixes = (SAFETENSORS, *PICKLED)
        names = [name for name in repository.names() if name.endswith(suffixes)]
        cached = _chosen(names, where)
    file = repository.file(cached)
    try:
        return file, repository.file(_CONFIG)
    except HubError as error:
        # Without the network, nobody knows whether there is one; that of peft has one.
        if file.stem == 'adapter_model' and not isinstance(error, NotOnHub):
            raise
        return file, None


def _is_cached(repository: Repository, name: str) -> bool:
    try:
        return repository.cached(name) is not None
    except NotOnHub:
        return False

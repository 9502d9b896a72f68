# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files on the Hugging Face hub: from the cache at once, and without the network.

What is not in the cache is downloaded by ``huggingface_hub``, which shows its progress, after a
line in the log that says what comes and how large it is. What goes wrong has one cause.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmaselect.diffusion.locate import WEIGHT_SUFFIXES, variant_of, weights_of
from mmaselect.files import acquired

logger = logging.getLogger(__name__)

#: Seconds that the hub may take to answer.
TIMEOUT = 10
#: Files that hold the weights of other frameworks, besides those of PyTorch.
_OTHER_WEIGHTS = (*WEIGHT_SUFFIXES, '.msgpack', '.h5', '.onnx', '.onnx_data', '.ot', '.index.json')


class HubError(FileNotFoundError):
    """Files on the hub cannot be had; the message says the one cause."""


class NotOnHub(HubError):
    """The repository is there, and a file in it is not."""


class Repository:
    """A repository on the hub.

    Args:
        title: What messages call it, such as ``"pretrained='a/b'"``.
        name: Its id.
        hub_kwargs: ``revision``, ``cache_dir``, ``token``, ``local_files_only``,
            ``force_download``, ``proxies``.
    """

    def __init__(self, title: str, name: str, hub_kwargs: Mapping[str, Any]) -> None:
        self.title = title
        self.name = name
        self._options = {k: v for k, v in hub_kwargs.items() if k not in ('variant', 'proxies')}
        self._forced = bool(self._options.pop('force_download', False))
        self._is_offline = bool(self._options.pop('local_files_only', False))

    # -- what is in the cache ----------------------------------------------------------------------
    def cached(self, file: str) -> Path | None:
        """A file in the cache; None if it is not there.

        Raises:
            NotOnHub: If it is known that the repository has no such file.
        """
        found = try_to_load_from_cache(
            self.name,
            file,
            cache_dir=self._options.get('cache_dir'),
            revision=self._options.get('revision'),
        )
        if found is not None and not isinstance(found, str):
            raise NotOnHub(f'{self.title}: the repository has no file {file}')
        return None if found is None else Path(found)

    def cached_commit(self) -> str | None:
        """The commit that the revision stands for in the cache; None if nothing is there."""
        for file in ('model_index.json', 'config.json', 'transformer/config.json'):
            with contextlib.suppress(NotOnHub):
                found = self.cached(file)
                if found is not None:
                    return found.parents[file.count('/')].name
        return None

    def file(self, file: str) -> Path:
        """A small file, downloaded if it is not in the cache.

        Raises:
            NotOnHub: If there is none.
            HubError: If it cannot be had.
        """
        if not self._forced:
            found = self.cached(file)
            if found is not None:
                return found
        names = self._names(file)
        options = {**self._options, 'force_download': self._forced}
        # Also where it is not listed: the cache then knows that there is none.
        if file in names:
            logger.info('%s: downloading %s (%s)', self.title, file, _size(names[file] or 0))
        return Path(
            self._explained(
                file, lambda: hf_hub_download(self.name, file, etag_timeout=TIMEOUT, **options)
            )
        )

    def folder(self, subfolder: str | None, variant: str | None, of_diffusers: bool = True) -> Path:
        """A local copy of the repository that holds all files of one folder that are needed.

        Args:
            subfolder: The folder; None for the files outside of all folders.
            variant: Variant of the files of weights; where there are none, those without are taken.
            of_diffusers: Whether its weights have the name that diffusers gives them.

        Returns:
            Path: The root of the copy, not the folder.

        Raises:
            HubError: If the files cannot be had.
            ValueError: If there are weights of another variant alone.
        """
        within = f'{subfolder}/' if subfolder else ''
        root = None if self._forced else self._root(within)
        here = [] if root is None else [each.name for each in (root / within).iterdir()]
        if root is not None and _is_whole(root / within, here, variant):
            return root
        try:
            listed = self._names(f'{within}*')
        except HubError as error:
            # There may be none of this variant, as there were none when it was downloaded.
            if variant is None or root is None or not _is_whole(root / within, here, None):
                raise
            logger.warning('%s: what is in the cache is read: %s', self.title, error)
            return root
        try:
            slug = self.name.replace('/', '--')
            lock = acquired(
                Path(self._cache()) / '.locks' / f'mmaselect-{slug}.lock',
                f'downloads {within or "the model"} of {self.name}',
            )
        except OSError:  # huggingface_hub says what is wrong with the folder
            return self._download(within, variant, of_diffusers, listed)
        try:
            if root is None and not self._forced:
                root = self._root(within)
            if root is not None:
                here = [each.name for each in (root / within).iterdir()]
                if _is_whole(root / within, here, variant):
                    return root  # another process has downloaded it
            return self._download(within, variant, of_diffusers, listed)
        finally:
            lock.release()

    def _download(
        self,
        within: str,
        variant: str | None,
        of_diffusers: bool,
        listed: Mapping[str, int | None],
    ) -> Path:
        """What :meth:`folder` does where the files are not in the cache."""
        names = {
            name.removeprefix(within): size
            for name, size in listed.items()
            if name.startswith(within) and '/' not in name.removeprefix(within)
        }
        weights = {
            name for name in names if not of_diffusers or name.startswith('diffusion_pytorch_model')
        }
        chosen = weights_of(weights, variant) or weights_of(weights, None)
        if of_diffusers and not chosen:
            others = sorted({variant_of(name) for name in weights_of_any(weights)})
            if not others:
                raise NotOnHub(f'{self.title}: the repository has no weights in {within or "it"}')
            raise ValueError(
                f'{self.title}: {within} has weights of variant {", ".join(others)} alone: set '
                f'variant={others[0]!r}'
            )
        small = [name for name in names if not name.endswith(_OTHER_WEIGHTS)]
        files = [f'{within}{name}' for name in {*chosen, *small}]
        size = sum(listed[name] or 0 for name in files)
        logger.info(
            '%s: downloading %s (%d files, %s) to %s',
            self.title,
            within or 'the model',
            len(files),
            _size(size),
            self._options.get('cache_dir') or constants.HF_HUB_CACHE,
        )
        return Path(
            self._explained(
                f'{within}*',
                lambda: snapshot_download(
                    self.name,
                    allow_patterns=files,
                    etag_timeout=TIMEOUT,
                    force_download=self._forced,
                    **self._options,
                ),
            )
        )

    def names(self) -> list[str]:
        """Names of all files, as the hub lists them.

        Raises:
            HubError: If the hub does not say.
        """
        return list(self._names('its files'))

    def _root(self, within: str) -> Path | None:
        """The copy in the cache, if it has a folder."""
        for file in ('config.json', 'scheduler_config.json', 'tokenizer_config.json'):
            for place in dict.fromkeys((f'{within}{file}', 'model_index.json', file)):
                try:
                    found = self.cached(place)
                except NotOnHub:
                    continue
                if found is not None:
                    root = found.parents[place.count('/')]
                    return root if (root / within).is_dir() else None
        return None

    # -- what is on the hub ------------------------------------------------------------------------
    def _names(self, wanted: str) -> dict[str, int | None]:
        """Names and sizes of all files on the hub."""
        if self._is_offline:
            raise HubError(
                f'{self.title}: {wanted} is not in the cache ({self._cache()}), and '
                f'local_files_only=True forbids the network'
            )
        revision, token = self._options.get('revision'), self._options.get('token')
        return self._explained(
            wanted, lambda: _listing(self.name, revision, token, constants.ENDPOINT)
        )

    def _cache(self) -> str:
        return str(self._options.get('cache_dir') or constants.HF_HUB_CACHE)

    def _explained(self, wanted: str, ask: Callable[[], Any]) -> Any:
        """What a call to the hub returns; what goes wrong has one cause."""
        try:
            return ask()
        except HubError:
            raise
        except Exception as error:
            kind = NotOnHub if _is_absent(error) else HubError
            raise kind(f'{self.title}: cannot get {wanted}: {self._cause(error)}') from error

    def _cause(self, error: BaseException) -> str:
        chain = _chain(error)
        endpoint = constants.ENDPOINT
        if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
            return (
                f'it is not in the cache ({self._cache()}), and HF_HUB_OFFLINE=1 forbids the '
                f'network. Unset it, or copy the cache from a machine that has downloaded it '
                f'(`hf download {self.name}`)'
            )
        for each in chain:
            if isinstance(each, GatedRepoError):
                return (
                    f'the model is gated: accept its license on {endpoint}/{self.name}, then run '
                    f'`hf auth login` here'
                )
            if isinstance(each, RevisionNotFoundError):
                return f'it has no revision {self._options.get("revision")!r}'
            if _is_absent(each):
                return 'the repository has no such file'
            status = getattr(getattr(each, 'response', None), 'status_code', None)
            if status in (401, 403):
                return (
                    f'the hub answered {status}: there is no public model {self.name!r}. If it is '
                    f'private, run `hf auth login`; otherwise check the id'
                )
            if isinstance(each, RepositoryNotFoundError) or status == 404:
                return f'there is no model {self.name!r} on {endpoint}: check the id'
            if isinstance(each, HfHubHTTPError) and status is not None:
                return f'the hub at {endpoint} answered {status}: try again later'
        for word, said in (
            ('Timeout', f'did not answer within {TIMEOUT} s'),
            ('Proxy', 'cannot be reached through the proxy that is set'),
            ('Connect', 'cannot be reached'),
        ):
            if any(word in type(each).__name__ for each in chain):
                return (
                    f'the hub at {endpoint} {said}, and the file is not in the cache '
                    f'({self._cache()}). Check the network, or set HF_ENDPOINT to a mirror'
                )
        return f'{type(error).__name__}: {error}'


def weights_of_any(names: set[str]) -> list[str]:
    """Files of weights of PyTorch, of any variant."""
    return [file for variant in {*map(variant_of, names)} for file in weights_of(names, variant)]


@functools.lru_cache(maxsize=64)
def _listing(
    name: str, revision: str | None, token: str | bool | None, endpoint: str
) -> dict[str, int | None]:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    info = HfApi(endpoint=endpoint, token=token).model_info(
        name, revision=revision, files_metadata=True, timeout=TIMEOUT
    )
    return {each.rfilename: each.size for each in info.siblings or ()}


def _is_whole(folder: Path, names: list[str], variant: str | None) -> bool:
    """Whether a folder in the cache has all that is needed of it."""
    weights = weights_of(names, variant)
    indices = [name for name in weights if name.endswith('.json')]
    if indices:
        try:
            entries = json.loads((folder / indices[0]).read_text(encoding='utf-8'))
            return {*entries['weight_map'].values()} <= {*names}
        except (OSError, ValueError, KeyError, AttributeError):
            return False
    if weights:
        return not any('-of-' in name for name in weights)
    # Folders of tokenizers have none.
    return bool(names) and 'config.json' not in names


def _is_absent(error: BaseException) -> bool:
    """Whether the hub said that there is no such file."""
    return any(
        isinstance(each, EntryNotFoundError) and isinstance(each, HfHubHTTPError)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, and what it was raised from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _size(number: int) -> str:
    for unit, factor in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if number >= factor:
            return f'{number / factor:.1f} {unit}'
    return f'{number} bytes'

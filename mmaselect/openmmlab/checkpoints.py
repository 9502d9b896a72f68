# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checkpoint files: read without running code, written whole or not at all, found for a resume."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmaselect.files import written_aside
from mmaselect.logs import logger
from mmaselect.untrusted import ONLY_WEIGHTS, force_only_weights, load_tensors

#: Functions that MMEngine pickles by the class that has them. ``getattr`` itself would hand out
#: anything.
_METHODS = {
    **{(HistoryBuffer, name): None for name in ('min', 'max', 'mean', 'current')},
    **{(OneCycleParamScheduler, name): None for name in ('_annealing_cos', '_annealing_linear')},
}


# -- reading --------------------------------------------------------------------------------------
def _known_method(owner: type, name: str) -> Any:
    """What stands for ``getattr`` in a checkpoint."""
    if not isinstance(owner, type) or (owner, name) not in _METHODS:
        raise UnpicklingError(
            f'{name!r} of {owner!r} is not among the functions that MMEngine stores'
        )
    return getattr(owner, name)


def _named(function: Callable, module: str, name: str) -> Callable:
    """A function under the name that a pickle knows it by."""

    def alias(*arguments: Any) -> Any:
        return function(*arguments)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


def mmengine_globals() -> list[Callable | tuple[Callable, str]]:
    """What a checkpoint of MMEngine may name beyond tensors, one by one.

    Log histories and the NumPy scalars and arrays in them, and the annealing functions of
    one-cycle schedules. All of it holds numbers; none of it runs what a file says.
    """
    numbers = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdgFD'}
    allowed: list[Callable | tuple[Callable, str]] = [
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        slice,  # in the meta data of some data sets
        *sorted(numbers, key=str),
        _named(_known_method, 'builtins', 'getattr'),
    ]
    core = np._core if hasattr(np, '_core') else np.core
    # Files of NumPy 1 and of NumPy 2 name one module differently.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        for name in ('_reconstruct', 'scalar'):
            allowed.append(_named(getattr(core.multiarray, name), module, name))
    return allowed


def allow_mmengine_objects() -> None:
    """Let ``torch.load(..., weights_only=True)`` read what MMEngine puts into a checkpoint.

    For every process that has a model of ours, with or without our tools: mmengine 0.10.7 reads
    checkpoints by ``torch.load``'s default, which since PyTorch 2.6 refuses those that it wrote.
    """
    torch.serialization.add_safe_globals(mmengine_globals())


def read_only_weights(trust: bool = False) -> None:
    """Have every checkpoint of this process read with ``weights_only=True``.

    Whoever calls ``torch.load``, and with whatever arguments: PyTorch's own switch is set. What
    MMEngine puts into a checkpoint is allowed by name, see :func:`mmengine_globals`.

    Args:
        trust: Read anything instead, and run the code in it.
    """
    force_only_weights(trust)
    if not trust:
        allow_mmengine_objects()


def check_checkpoint_file(path: str | os.PathLike) -> None:
    """Check that a file can be read as a checkpoint, without reading its tensors.

    Args:
        path: A file of this machine.

    Raises:
        ValueError: If it is empty, cut off or something else, or names objects that could run code.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise ValueError(f'{path} is empty: it was not written to its end. Use another checkpoint')
    if not zipfile.is_zipfile(path):
        with path.open('rb') as file:
            start = file.read(2)
        if start == b'PK':
            raise ValueError(
                f'{path} is cut off: it was not written to its end (a full disk, or a run that was '
                f'killed). Use another checkpoint'
            )
        # torch.save of before 1.6 wrote plain pickles; torch.load says what it thinks of those.
        if start[:1] != pickle.PROTO:
            raise ValueError(
                f'{path} is not a checkpoint of PyTorch: it begins with {start!r}. Give the '
                f'.pth file '
                f'that training wrote'
            )
        return
    if os.environ.get(ONLY_WEIGHTS) != '1':
        return
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if refused:
        raise ValueError(
            f'{path} holds Python objects that are neither tensors nor what MMEngine puts into a '
            f'checkpoint: {", ".join(sorted(refused))}. Reading them could run code. If you trust '
            f'its source, add --trust-checkpoint'
        )


def check_weights_fit(model: torch.nn.Module, path: str | os.PathLike) -> None:
    """Check that a checkpoint has all trained weights of a model, whole and in their shapes.

    MMEngine loads what fits, and logs the rest: a head with another number of classes would be
    tested with random weights.

    Args:
        model: The model, as its config builds it.
        path: A checkpoint of this machine that :func:`check_checkpoint_file` has passed.

    Raises:
        ValueError: If an entry is missing, has another shape, or is not finite; or if the file is
            damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(
                f'{path} is damaged: the checksum of its entry {damaged!r} does not match. Use '
                f'another checkpoint'
            )
    stored = load_tensors(Path(path))
    stored = stored.get('state_dict', stored) if isinstance(stored, dict) else {}
    stored = {str(name).removeprefix('module.'): value for name, value in stored.items()}
    wanted = dict(model.named_parameters())
    missing = [name for name in wanted if name not in stored]
    others = [
        f'{name} is {tuple(stored[name].shape)} there and {tuple(weight.shape)} in the model'
        for name, weight in wanted.items()
        if name in stored and stored[name].shape != weight.shape
    ]
    broken = [
        name
        for name in wanted
        if name in stored
        and stored[name].is_floating_point()
        and not bool(stored[name].isfinite().all())
    ]
    for found, what in (
        (missing, 'lacks'),
        (others, 'has weights of other shapes, so that they would stay random:'),
        (broken, 'has weights that are not finite (NaN or infinity):'),
    ):
        if found:
            more = f', and {len(found) - 3} more' if len(found) > 3 else ''
            raise ValueError(
                f'{path} {what} {", ".join(found[:3])}{more}. Give the checkpoint that was trained '
                f'by this config (its num_classes, channels and heads)'
            )


def find_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of a work directory.

    The one that ``last_checkpoint`` names, as in MMEngine, if it is there and whole; else the
    newest whole file among the others, and a warning says so.

    Args:
        work_dir: Where a run writes.

    Returns:
        str | None: Its path; None if there is no checkpoint at all.

    Raises:
        ValueError: If there are checkpoints, and none of them is whole.
    """
    work_dir = Path(work_dir)
    note = work_dir / 'last_checkpoint'
    named = _read_note(note) if note.is_file() else ''
    if '://' in named:
        return named  # of a storage backend
    broken = []
    if os.path.isfile(named):
        if zipfile.is_zipfile(named):
            return named
        broken.append(Path(named))
    elif named and os.path.isdir(named):
        return named  # DeepSpeed's are folders
    files = sorted(
        (path for path in work_dir.glob('*.pth') if path.name.startswith(('iter_', 'epoch_'))),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    whole = [path for path in files if path not in broken and zipfile.is_zipfile(path)]
    if whole:
        if named or len(whole) < len(files):
            logger.warning(
                f'the last checkpoint of {work_dir} ({named or files[0]}) is missing or was not '
                f'written to its end: {whole[0]}, the newest whole one, is taken instead',
            )
        return str(whole[0])
    if broken or files:
        raise ValueError(
            f'no checkpoint in {work_dir} is whole: '
            f'{", ".join(sorted({str(path) for path in [*broken, *files]}))}. They were not '
            f'written to their end (a full disk, or a run that was killed)'
        )
    return None


def _read_note(note: Path) -> str:
    """What ``last_checkpoint`` names; nothing, with a warning, if it cannot be read."""
    try:
        return note.read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        logger.warning(
            f'{note}, which names the last checkpoint, cannot be read ({error}): the newest '
            f'checkpoint there is taken',
        )
        return ''


# -- writing --------------------------------------------------------------------------------------
class WholeFileBackend(LocalBackend):
    """MMEngine's local files, each there in full or not at all.

    MMEngine removes an old checkpoint (``max_keep_ckpts``, ``save_best``) before it writes the new
    one, so that a full disk or a kill in between could leave none. Here the old one goes when the
    next one is there.
    """

    #: Checkpoints that were to be removed, by this process.
    outdated: ClassVar[list[str]] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with written_aside(filepath) as aside, aside.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        if Path(filepath).suffix == '.pth':
            while self.outdated:
                path = self.outdated.pop()
                if Path(path) != Path(filepath) and Path(path).exists():
                    super().remove(path)

    def remove(self, filepath: str | Path) -> None:
        if Path(filepath).suffix == '.pth':
            self.outdated.append(str(filepath))
        else:
            super().remove(filepath)


def write_whole_files() -> None:
    """Have MMEngine write its checkpoints, in this process, through :class:`WholeFileBackend`."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')

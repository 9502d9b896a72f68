# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A folder of results by timestep, from which a long study can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmaselect.files import write_json


class ResultFolder:
    """Results by timestep, each in a file of its own that is there in full or not at all.

    Args:
        folder: Made if it is not there.
        settings: What the results depend on (JSON-ready). A folder made with others is refused.

    Raises:
        ValueError: If the folder holds results of other settings, or files that are not results.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings, default=str))
        path = self.folder / 'settings.json'
        if path.is_file():
            self._compare(json.loads(path.read_text(encoding='utf-8')))
        else:
            write_json(path, self.settings)

    def _compare(self, theirs: dict[str, Any]) -> None:
        keys = sorted(
            key
            for key in {*theirs, *self.settings}
            if theirs.get(key, '(none)') != self.settings.get(key, '(none)')
        )
        if keys:
            changes = '; '.join(
                f'{key}: {_short(theirs.get(key, "(none)"))} there, '
                f'{_short(self.settings.get(key, "(none)"))} now'
                for key in keys
            )
            raise ValueError(
                f'{str(self.folder)!r} holds results of other settings ({changes}). Take another '
                f'--out, or remove that folder'
            )

    def path(self, timestep: int) -> Path:
        return self.folder / 'timesteps' / f't{timestep:04d}.json'

    def find(self, timestep: int) -> dict[str, Any] | None:
        """The result of a timestep, or None if it has none yet."""
        return self.load(timestep) if self.path(timestep).is_file() else None

    def load(self, timestep: int) -> dict[str, Any]:
        """The result of a timestep that has one."""
        return json.loads(self.path(timestep).read_text(encoding='utf-8'))

    def save(self, timestep: int, result: dict[str, Any]) -> None:
        write_json(self.path(timestep), result)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Settings of a folder of results.

    Raises:
        FileNotFoundError: If the folder has no ``settings.json``.
    """
    path = Path(folder) / 'settings.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{str(folder)!r} is not a folder of results: it has no settings.json. Give the '
            f'--out of '
            f'an earlier run'
        )
    return json.loads(path.read_text(encoding='utf-8'))


def check_same_model(settings: dict[str, Any], probe: dict[str, Any]) -> None:
    """Refuse to join scores with accuracies of another model, or of other image sizes.

    Args:
        settings: Settings of this command's study.
        probe: Those that ``probe_timesteps.py`` stored.

    Raises:
        ValueError: If they differ.
    """
    for key in ('weights', 'image_size', 'task', 'dtype', 'condition'):
        mine, theirs = settings[key], probe.get(key)
        mine = list(mine) if isinstance(mine, tuple) else mine
        if mine != theirs:
            raise ValueError(
                f'--probe was made with {key}={theirs!r}, but this command has {mine!r}: give the '
                f'same config and options to both'
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'

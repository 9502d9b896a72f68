# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Names of the files of selections in the work directory of a run."""

from __future__ import annotations

from pathlib import Path

#: Endings of the files of a report.
REPORT_SUFFIXES = ('.json', '.png', '.html')
_STEM, _ASIDE = 'selection', '_of_another_timestep'


def report_stem(backbone: str = '') -> str:
    """Name of a selection's files without their endings.

    Args:
        backbone: Name of the backbone in a model that has several of ours; empty for the only one.

    Example:
        >>> report_stem(), report_stem('auxiliary.backbone')
        ('selection', 'selection_auxiliary.backbone')
    """
    return f'{_STEM}_{backbone}' if backbone else _STEM


def set_aside_stem(stem: str) -> str:
    """Name that the files of a selection get which is not that of the run."""
    return f'{stem}{_ASIDE}'


def find_selections(work_dir: str | Path) -> dict[str, Path]:
    """The results in a work directory: the name of the backbone, and its ``.json``.

    Args:
        work_dir: What a training, or a selection, wrote. Results that were set aside are left out.

    Returns:
        dict: Sorted by name. The name of the only backbone of a model is empty.
    """
    found = {}
    for path in sorted(Path(work_dir).glob(f'{_STEM}*.json')):
        name = path.stem.removeprefix(_STEM)
        if path.is_file() and not name.endswith(_ASIDE) and (not name or name.startswith('_')):
            found[name[1:]] = path
    return found

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``selection.html``: a selection for people who look at a browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmaselect.files import write_atomically
from mmaselect.images.thumbnails import Thumbnail
from mmaselect.logs import warn
from mmaselect.report.plot import save_selection, selection_figure
from mmaselect.report.rendering import figure_uri, image_uri, render
from mmaselect.report.work_dir import REPORT_SUFFIXES
from mmaselect.selection import SelectionResult

#: Images that are seen without a click.
SHOWN_AT_ONCE = 24


def selection_page(result: SelectionResult, images: Sequence[Thumbnail] = ()) -> str:
    """A page with the pick, its curve, a table, warnings with what to do, and the images.

    Args:
        result: The selection.
        images: Some of the calibration images.

    Returns:
        str: HTML that needs no other file and no network.
    """
    curves = {result.criterion: result.curve, **result.others}
    return render(
        'selection.html.j2',
        result=result,
        model=result.model or result.settings.get('transformer', ''),
        revision=(result.provenance.get('model') or {}).get('revision'),
        origin=result.provenance,
        figure=figure_uri(selection_figure(result)),
        curves=curves,
        rows=[
            (point, [curve.points[place] for curve in curves.values()])
            for place, point in enumerate(result.curve.points)
        ],
        shown=SHOWN_AT_ONCE,
        images=[(image.name, image_uri(image.pixels, 'jpeg')) for image in images],
        settings=json.dumps(result.settings, indent=2, sort_keys=True),
    )


def save_selection_page(
    result: SelectionResult, folder: str | Path, images: Sequence[Thumbnail] = ()
) -> Path:
    """Write ``selection.html`` into a folder, and return its path."""
    return write_atomically(Path(folder) / 'selection.html', selection_page(result, images))


def save_report(
    result: SelectionResult,
    folder: str | Path,
    images: Sequence[Thumbnail] = (),
    strict: bool = False,
) -> list[Path]:
    """Write ``selection.json``, ``selection.png`` and ``selection.html``; return their paths.

    A file that cannot be written is left out, with a warning: the selection cost more than it.

    Args:
        result: The selection.
        folder: Where they go.
        images: Shown on the page.
        strict: Raise once all that can be written is there.

    Raises:
        OSError: If ``strict``, and a file could not be written.
    """
    written = save_selection(result, folder)
    try:
        written.append(save_selection_page(result, folder, images))
    except OSError as error:
        warn(f'{Path(folder) / "selection.html"} cannot be written ({error})')
    if strict and len(written) < len(REPORT_SUFFIXES):
        missing = {f'selection{suffix}' for suffix in REPORT_SUFFIXES} - {p.name for p in written}
        raise OSError(
            f'{", ".join(sorted(missing))} could not be written to {str(folder)!r}; the timestep '
            f'is {result.timestep}, and is kept in the cache: name another folder with --out'
        )
    return written

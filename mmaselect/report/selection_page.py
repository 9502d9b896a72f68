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
from mmaselect.selection import SelectionResult

#: What a warning has in it, to what can be done.
ADVICE = {
    'were not finite': "Set dtype='bf16' or dtype='fp32' in the backbone and select again.",
    'is the first point of the grid': 'Look at the curve. If it rises towards 0, that is the '
    'answer for this model; if it is noise, use more calibration images (num_images) or another '
    'block.',
    'is the last point of the grid': "Widen the grid (timesteps='START:STOP:STEP') until the curve "
    'turns. If it rises to the end, the criterion may measure the noise: pick by the default one.',
    'the curve is flat': 'Use more calibration images (num_images), or another block: what differs '
    'by less than its error is no choice.',
    'disagrees': 'Compare the curves below. The first one decides; a check with labels (a linear '
    'probe at both timesteps, tools/analysis_tools/probe_timesteps.py) settles it.',
}

#: Images that are seen without a click.
SHOWN_AT_ONCE = 24


def advice(warning: str) -> str:
    """What to do about a warning of a selection; nothing for one that says it itself.

    Example:
        >>> advice('HighFrequencyRatio disagrees: it would pick timestep 5 instead of 75')[:18]
        'Compare the curves'
    """
    return next((text for part, text in ADVICE.items() if part in warning), '')


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
        model=result.settings.get('transformer', ''),
        figure=figure_uri(selection_figure(result)),
        warnings=[(warning, advice(warning)) for warning in result.warnings],
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
    result: SelectionResult, folder: str | Path, images: Sequence[Thumbnail] = ()
) -> list[Path]:
    """Write ``selection.json``, ``selection.png`` and ``selection.html``; return their paths.

    A file that cannot be written is left out, with a warning: the selection cost more than it.
    """
    written = save_selection(result, folder)
    try:
        written.append(save_selection_page(result, folder, images))
    except OSError as error:
        warn(f'{Path(folder) / "selection.html"} cannot be written ({error})')
    return written

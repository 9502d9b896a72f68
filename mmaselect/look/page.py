# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A look as a page: one HTML file, in which tokens can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

from mmaselect.files import write_atomically
from mmaselect.look.gathering import Look
from mmaselect.look.position import ENOUGH_FOR_POSITION
from mmaselect.look.similarity import pack_tokens
from mmaselect.report.plot import selection_figure
from mmaselect.report.rendering import as_base64, figure_uri, image_uri, render


def look_page(look: Look, dimensions: int = 64, notes: Sequence[str] = ()) -> str:
    """A page with a row for each timestep and a column for each block and feature.

    Args:
        look: What :func:`look_at` gave.
        dimensions: Numbers that a token is kept with, for its similarities: more are more exact,
            and make a larger file.
        notes: Sentences above the table.

    Returns:
        str: HTML that needs no other file and no network.
    """
    views = [('raw', look.maps, look.colors)]
    if look.positions:
        content = {where: look.content(*where) for where in look.maps}
        views.insert(0, ('content', content, look.content_colors))
    errors: list[float] = []

    def view(values: Tensor, colors: np.ndarray) -> dict[str, Any]:
        packed = pack_tokens(values, dimensions)
        errors.append(packed.error)
        return {
            'colors': [as_base64(one.tobytes()) for one in colors],
            'tokens': [as_base64(one.tobytes()) for one in packed.values],
            'dimensions': packed.values.shape[-1],
            'scale': packed.scale,
        }

    cells = [
        [
            {name: view(maps[step, key], colors[step, key]) for name, maps, colors in views}
            for key in look.keys
        ]
        for step in look.timesteps
    ]
    height, width = next(iter(look.colors.values())).shape[1:3]
    selection = look.selection
    scores: dict[int, float | None] = {}
    if selection is not None:
        scores = {point.timestep: point.score for point in selection.curve.points}
    palette = (matplotlib.colormaps['viridis'](np.arange(256))[:, :3] * 255).round()
    return render(
        'look.html.j2',
        look=look,
        notes=list(notes),
        figure=None if selection is None else figure_uri(selection_figure(selection)),
        warnings=[] if selection is None else selection.warnings,
        scores=scores,
        error=max(errors),
        enough=ENOUGH_FOR_POSITION,
        data={
            'width': width,
            'height': height,
            'images': [image_uri(image, 'jpeg') for image in look.images],
            'inputs': [
                [image_uri(image, 'jpeg') for image in look.inputs[step]] for step in look.timesteps
            ],
            'rows': [f't = {step}' for step in look.timesteps],
            'columns': [f'block {block}, {feature}' for block, feature in look.keys],
            'pick': None if look.pick is None else look.timesteps.index(look.pick),
            'palette': as_base64(palette.astype(np.uint8).tobytes()),
            'cells': cells,
        },
    )


def save_look_page(
    look: Look, path: str | Path, dimensions: int = 64, notes: Sequence[str] = ()
) -> Path:
    """Write :func:`look_page` to a file, and return its path."""
    return write_atomically(path, look_page(look, dimensions, notes))

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The figures of a look, for notebooks and papers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmaselect.checks import whole_number
from mmaselect.diffusion import TapKey
from mmaselect.look.gathering import Look
from mmaselect.look.similarity import similarity


def _new_figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.5 * columns + 0.6, 1.5 * rows + 0.5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _label_row(axis: Axes, look: Look, place: int) -> None:
    step = look.timesteps[place]
    picked = step == look.pick
    axis.set_ylabel(
        f't = {step}' + (' (pick)' if picked else f'\nsigma {look.noise_levels[place]:.2f}'),
        fontsize=8,
        fontweight='bold' if picked else 'normal',
    )


def colors_figure(
    look: Look, images: Sequence[int] | None = None, position: bool = False
) -> Figure:
    """Tokens as colors: a row for each timestep, a column for each map and image.

    Args:
        look: What :func:`look_at` gave.
        images: Which of the images; all if None.
        position: Keep what depends on position alone in the maps.

    Raises:
        ValueError: If there is no such image.
    """
    chosen = range(len(look.images)) if images is None else images
    chosen = [whole_number('images', place, 0, len(look.images) - 1) for place in chosen]
    if not chosen:
        raise ValueError('images is empty: name at least one, or give None for all')
    figure, axes = _new_figure(1 + len(look.timesteps), len(look.keys) * len(chosen))
    colors = look.colors if position else look.content_colors or look.colors
    for column, (key, image) in enumerate((k, i) for k in look.keys for i in chosen):
        axes[0, column].imshow(look.images[image])
        axes[0, column].set_title(f'block {key[0]}, {key[1]}', fontsize=8)
        for row, step in enumerate(look.timesteps):
            axes[row + 1, column].imshow(colors[step, key][image], interpolation='nearest')
    for row in range(len(look.timesteps)):
        _label_row(axes[row + 1, 0], look, row)
    return figure


def similarity_figure(
    look: Look,
    image: int,
    row: int,
    column: int,
    key: TapKey | None = None,
    position: bool = False,
) -> Figure:
    """Where else one token recurs: its cosine similarity to all tokens of all images.

    Args:
        look: What :func:`look_at` gave.
        image: Where the token is.
        row: From above, in tokens.
        column: From the left, in tokens.
        key: (block, feature) of the map; the first one if None.
        position: Keep what depends on position alone in the maps.

    Raises:
        ValueError: If there is no such token or map.
    """
    key = look.keys[0] if key is None else key
    if key not in look.keys:
        raise ValueError(f'key must be one of {list(look.keys)}, got {key!r}')
    figure, axes = _new_figure(1 + len(look.timesteps), len(look.images))
    for place, pixels in enumerate(look.images):
        axes[0, place].imshow(pixels)
        axes[0, place].set_title(look.names[place][-24:], fontsize=7)
    corner = (column * look.stride, row * look.stride)
    axes[0, image].add_patch(
        Rectangle(corner, look.stride, look.stride, fill=False, edgecolor='red', linewidth=1.5)
    )
    for place, step in enumerate(look.timesteps):
        values = look.maps[step, key] if position else look.content(step, key)
        found = similarity(values, image, row, column).numpy()
        for other in range(len(look.images)):
            axis = axes[place + 1, other]
            axis.imshow(found[other], vmin=found.min(), vmax=1.0, interpolation='nearest')
            best = np.unravel_index(found[other].argmax(), found[other].shape)
            axis.plot(best[1], best[0], marker='+', color='red', markersize=7)
        _label_row(axes[place + 1, 0], look, place)
    figure.suptitle(f'block {key[0]}, {key[1]}', fontsize=9)
    return figure

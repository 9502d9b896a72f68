# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``selection.html``: a selection for people who look at a browser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.files import write_atomically
from mmaselect.images.thumbnails import Thumbnail
from mmaselect.logs import warn
from mmaselect.registry import CRITERIA
from mmaselect.report.places import HEIGHT, WIDTH, searched_features, spark_rows
from mmaselect.report.plot import save_selection, selection_figure
from mmaselect.report.rendering import image_uri, inline_svg, render
from mmaselect.report.strip import Strip
from mmaselect.report.work_dir import REPORT_SUFFIXES
from mmaselect.selection import Curve, SelectionResult
from mmaselect.selection.result import finalists, images_seen

#: Images that are seen without a click.
SHOWN_AT_ONCE = 24


def selection_page(
    result: SelectionResult, images: Sequence[Thumbnail] = (), strip: Strip | None = None
) -> str:
    """A page with the pick, its curve, warnings with what to do, the images, and a table.

    Args:
        result: The selection.
        images: Some of the calibration images.
        strip: A few of them at timesteps around the pick.

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
        figure=inline_svg(selection_figure(result)),
        points=_point_words(curves),
        features=searched_features(result),
        places=spark_rows(result),
        spark_size=(WIDTH, HEIGHT),
        unit=_unit(result.criterion),
        seen=images_seen(result),
        strip=strip and _strip_rows(strip),
        snippets=_snippets(result),
        curves=curves,
        rows=[
            (point, [curve.points[place] for curve in curves.values()])
            for place, point in enumerate(result.curve.points)
        ],
        shown=SHOWN_AT_ONCE,
        images=[(image.name, image_uri(image.pixels, 'jpeg')) for image in images],
        settings=json.dumps(result.settings, indent=2, sort_keys=True),
    )


def _point_words(curves: Mapping[str, Curve]) -> dict[str, list[str]]:
    """What a point says of itself, by its name in the figure's SVG, in the order drawn there."""
    words: dict[str, list[str]] = {}
    for curve in curves.values():
        most = max((point.images or 0 for point in finalists(curve.points)), default=0)
        for point in curve.points:
            if point.score is None:
                continue
            kind = 'dropped' if (point.images or 0) < most else 'kept'
            error = '' if point.sem is None else f' ± {2 * point.sem:.4f}'
            images = '' if point.images is None else f', {point.images} images'
            words.setdefault(f'{curve.criterion} {kind}', []).append(
                f't = {point.timestep}: {point.score:.4f}{error} (sigma '
                f'{point.noise_level:.2f}{images})'
            )
    return words


def _unit(criterion: str) -> str:
    """What a score of a criterion counts; empty if it is not known here."""
    return getattr(CRITERIA.get(criterion.partition('-')[0]), 'unit', '')


def _strip_rows(strip: Strip) -> dict[str, Any]:
    """A strip with its pictures as data URIs."""
    return dict(
        title=strip.title,
        pick=strip.pick,
        columns=list(zip(strip.timesteps, strip.noise_levels, strict=True)),
        images=[
            [
                (image_uri(strip.inputs[step][place]), image_uri(strip.colors[step][place]))
                for step in strip.timesteps
            ]
            for place in range(len(strip.images))
        ],
    )


def _snippets(result: SelectionResult) -> list[tuple[str, str]]:
    """Titles and texts to copy: how to read the model where the result says."""
    blocks, names = result.place_arguments
    name = result.model or 'THE MODEL'
    feature = names[0] if len(names) == 1 else names
    where = '' if blocks is None else f'blocks={blocks!r}, '
    python = (
        'from mmaselect import FeatureExtractor\n\n'
        f'extract = FeatureExtractor({name!r}, timestep={result.timestep}, {where}'
        f'feature={feature!r})\n'
        'maps = extract(images)  # {(block, feature): (N, C, h, w)}'
    )
    flags = '' if blocks is None else f'--blocks {" ".join(map(str, blocks))} '
    command = (
        f'mmaselect features IMAGES --pretrained {shlex.quote(name)} --timestep {result.timestep} '
        f'{flags}--feature {" ".join(names)} --out FEATURES'
    )
    config = result.config_snippet()
    return [('OpenMMLab config', config), ('Python', python), ('command', command)]


def save_selection_page(
    result: SelectionResult,
    folder: str | Path,
    images: Sequence[Thumbnail] = (),
    strip: Strip | None = None,
) -> Path:
    """Write ``selection.html`` into a folder, and return its path."""
    return write_atomically(Path(folder) / 'selection.html', selection_page(result, images, strip))


def save_report(
    result: SelectionResult,
    folder: str | Path,
    images: Sequence[Thumbnail] = (),
    strict: bool = False,
    strip: Strip | None = None,
) -> list[Path]:
    """Write ``selection.json``, ``selection.png`` and ``selection.html``; return their paths.

    A file that cannot be written is left out, with a warning: the selection cost more than it.

    Args:
        result: The selection.
        folder: Where they go.
        images: Shown on the page.
        strip: A few images around the pick, shown there, too.
        strict: Raise once all that can be written is there.

    Raises:
        OSError: If ``strict``, and a file could not be written.
    """
    written = save_selection(result, folder)
    try:
        written.append(save_selection_page(result, folder, images, strip))
    except OSError as error:
        warn(f'{Path(folder) / "selection.html"} cannot be written ({error})')
    if strict and len(written) < len(REPORT_SUFFIXES):
        missing = {f'selection{suffix}' for suffix in REPORT_SUFFIXES} - {p.name for p in written}
        raise OSError(
            f'{", ".join(sorted(missing))} could not be written to {str(folder)!r}; the timestep '
            f'is {result.timestep}, and is kept in the cache: name another folder with --out'
        )
    return written

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A selection for people who look at a terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

from mmaselect.report.places import score_range, searched_features, spark_text
from mmaselect.selection.result import SelectionResult, images_seen
from mmaselect.terminal.width import console as new_console


def print_selection(
    result: SelectionResult,
    console: Console | None = None,
    table: bool = True,
    from_cache: bool = False,
) -> None:
    """Print the pick, its warnings and, if asked to, a table of the curve with the pick marked.

    Of a search there is a second table, in which each place has a small curve.

    Args:
        result: The selection.
        console: Where to print; stdout if None.
        table: Whether to print the table.
        from_cache: Whether the result was found, and not computed.
    """
    console = console or new_console()
    took = f'{result.seconds:.1f} s'
    console.print(
        f'timestep {result}, {result.where}, sigma {result.noise_level:.3f}, '
        f'{result.model_evaluations} model evaluations, '
        f'{f"from cache ({took} then)" if from_cache else took}',
        style='bold',
    )
    if result.is_joined:
        console.print(f'read together, with the joined score of each: {result.together}')
    if result.cost is not None:
        console.print(f'cost: {result.cost}')
    if result.places_as_good:
        console.print(f'may be as good: {result.places_as_good}')
    print_warnings(result, console)
    if table:
        console.print(_table(result))
        if searched_features(result):
            console.print('\nbest score of each place, and its curve over the timestep:')
            console.print(_places(result, console.width))


def print_warnings(result: SelectionResult, console: Console | None = None) -> None:
    """Print the warnings of a selection, each with what to do.

    Args:
        result: The selection.
        console: Where to print; stdout if None.
    """
    console = console or new_console()
    for warning in result.warnings:
        console.print(f'warning: {warning}. {warning.advice}'.rstrip(), style='yellow')


def _table(result: SelectionResult) -> Table:
    """The curve, with the pick marked."""
    table = Table(title=f'{result.criterion} of {result.where_scored}, {images_seen(result)}')
    names = list(result.others)
    raced = len({point.images for point in result.curve.points}) > 1
    images = ('images',) if raced else ()
    for column in ('timestep', 'sigma', result.criterion, 'std', *names, *images):
        table.add_column(column, justify='right')
    for index, point in enumerate(result.curve.points):
        row = [str(point.timestep), f'{point.noise_level:.3f}']
        row += ['-' if value is None else f'{value:.5f}' for value in (point.score, point.std)]
        for name in names:
            score = result.others[name].points[index].score
            row.append('-' if score is None else f'{score:.5f}')
        if raced:
            row.append(str(point.images))
        table.add_row(*row, style='bold green' if point.timestep == result.timestep else None)
    return table


def _places(result: SelectionResult, width: int) -> Table:
    """A row for each block, with the curve and the best score of each feature.

    Args:
        result: The selection.
        width: Characters of a line, which all curves share.
    """
    features = searched_features(result)
    low, high = score_range(result)
    curves = {(curve.block, curve.feature): curve for curve in result.per_tap}
    labels = {key: f'{curve.best.score or 0.0:.2f}' for key, curve in curves.items()}
    # Three blanks stand between columns. Where a score finds no room, the curve stands alone.
    each = (width - len('block') - 2) // len(features) - 3
    room = each - 1 - max(map(len, labels.values()), default=0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ('block', *features):
        table.add_column(name, no_wrap=True, justify='right' if name == 'block' else 'left')
    for block in sorted({curve.block for curve in result.per_tap if curve.block is not None}):
        row = []
        for feature in features:
            curve = curves.get((block, feature))
            if curve is None:
                row.append('-')
                continue
            # Timesteps of the grid: finer steps were scored at a few places only.
            scores = dict(zip(curve.timesteps, curve.scores, strict=True))
            grid = [scores.get(step, math.nan) for step in result.settings['timesteps']]
            text = spark_text(grid, low, high, max(each, 1) if room < 4 else min(room, 40))
            if room >= 4:
                text += f' {labels[block, feature]}'
            row.append(f'[bold green]{text}[/]' if (block, feature) in result.cells else text)
        table.add_row(str(block), *row)
    return table

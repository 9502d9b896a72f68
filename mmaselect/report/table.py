# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A selection for people who look at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mmaselect.selection.result import SelectionResult, images_seen


def print_selection(
    result: SelectionResult,
    console: Console | None = None,
    table: bool = True,
    from_cache: bool = False,
) -> None:
    """Print the pick, its warnings and, if asked to, a table of the curve with the pick marked.

    Args:
        result: The selection.
        console: Where to print; stdout if None.
        table: Whether to print the table.
        from_cache: Whether the result was found, and not computed.
    """
    console = console or Console()
    took = f'{result.seconds:.1f} s'
    console.print(
        f'timestep {result}, {result.where}, sigma {result.noise_level:.3f}, '
        f'{result.model_evaluations} model evaluations, '
        f'{f"from cache ({took} then)" if from_cache else took}',
        style='bold',
    )
    if result.cost is not None:
        console.print(f'cost: {result.cost}')
    for warning in result.warnings:
        console.print(f'warning: {warning}. {warning.advice}'.rstrip(), style='yellow')
    if table:
        console.print(_table(result))


def _table(result: SelectionResult) -> Table:
    """The curve, with the pick marked."""
    table = Table(title=f'{result.criterion} of {result.where}, {images_seen(result)}')
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

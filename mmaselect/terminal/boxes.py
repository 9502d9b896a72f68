# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Lines that must not be missed among hundreds of a log."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text


def boxed(lines: Sequence[str], title: str = 'A-SelecT') -> str:
    """Lines in a box of plain characters, which every terminal and log file can hold.

    Args:
        lines: Shown as they are, never broken.
        title: In the upper edge.

    Example:
        >>> print(boxed(['timestep 75 of 1000']))
        +---- A-SelecT -----+
        |timestep 75 of 1000|
        +-------------------+
    """
    width = max(map(len, [*lines, title])) + 8
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None)
    panel = Panel.fit(Text('\n'.join(lines), no_wrap=True), title=title, box=box.ASCII)
    panel.padding = 0
    console.print(panel)
    return text.getvalue().rstrip('\n')

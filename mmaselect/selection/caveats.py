# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What makes a pick suspect, as data: what was found, and what a user can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Code of a warning to how its text begins or reads, and to what a user can do about it.
KINDS: dict[str, tuple[str, str]] = {
    'nonfinite': (
        'features were not finite (NaN or infinity) ...',
        "Set dtype='bf16' or dtype='fp32' in the backbone and select again.",
    ),
    'first': (
        'the pick ... is the first point of the grid',
        'Look at the curve. If it rises towards 0, that is the answer for this model; if it is '
        'noise, use more calibration images (num_images) or another block.',
    ),
    'last': (
        'the pick ... is the last point of the grid',
        "Widen the grid (timesteps='START:STOP:STEP') until the curve turns. If it rises to the "
        'end, the criterion may measure the noise: pick by the default one.',
    ),
    'flat': (
        'the curve is flat',
        'Use more calibration images (num_images), or another block: what differs by less than '
        'its error is not a choice.',
    ),
    'undecided': (
        'the pick is undecided: ... cannot be told from it',
        'Use more calibration images (num_images), or another block. If the timesteps that are '
        'named score alike on many images, any of them will do by this criterion.',
    ),
    'place': (
        'the place is undecided: ...',
        'Use more calibration images (num_images), or name blocks and feature yourself.',
    ),
    'few': (
        'there are ... images, and this criterion asks for ...',
        'Use more calibration images: they need no labels.',
    ),
    'copies': (
        '... images are copies of others',
        'Remove copies and empty images from the calibration images.',
    ),
    'disagreement': (
        '... disagrees: it would pick timestep ...',
        'Compare the curves. The first one decides; a linear probe at '
        'both timesteps settles it (`mmaselect probe FOLDER`, with a folder for each class).',
    ),
}


@dataclass(frozen=True)
class Caveat:
    """A warning of a selection.

    Attributes:
        code: Its kind, a key of :data:`KINDS`; empty for a text of an older version.
        text: What was found.
        advice: What a user can do about it; empty where nothing is known.
    """

    code: str
    text: str
    advice: str = ''

    @classmethod
    def of(cls, code: str, text: str) -> Caveat:
        """A warning of a kind, with the advice of that kind."""
        return cls(code, text, KINDS[code][1])

    @classmethod
    def parse(cls, stored: Any) -> Caveat:
        """A warning as ``selection.json`` has it; older versions wrote the text alone.

        Raises:
            ValueError: If it is neither.

        Example:
            >>> Caveat.parse('the curve is flat').text
            'the curve is flat'
        """
        if isinstance(stored, str):
            return cls('', stored)
        names = {'code', 'text', 'advice'}
        if not isinstance(stored, Mapping) or set(stored) != names:
            raise ValueError(f'a warning has {sorted(names)}, got {stored!r}')
        return cls(**stored)

    def __str__(self) -> str:
        return self.text


def caveats_table() -> str:
    """All kinds as a table in Markdown."""
    rows = [f'| `{text}` | {advice} |' for text, advice in KINDS.values()]
    return '\n'.join(['| warning | what to do |', '|---|---|', *rows]) + '\n'

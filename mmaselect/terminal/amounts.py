# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Amounts as people read them: three digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence


def bytes_in_words(number: int) -> str:
    """Bytes.

    Example:
        >>> bytes_in_words(4_159_296), bytes_in_words(22 * 2**30)
        ('3.97 MiB', '22 GiB')
    """
    return _scaled(number, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))


def flops_in_words(number: int) -> str:
    """Floating-point operations.

    Example:
        >>> flops_in_words(60_142_464), flops_in_words(999_900)
        ('60.1 MFLOP', '1 MFLOP')
    """
    return _scaled(number, 1000, ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP'))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    *smaller, last = units
    for unit in smaller:
        if number < 0.9995 * base:
            return f'{number:.{max(3, len(str(int(number))))}g} {unit}'
        number /= base
    return f'{number:,.3g} {last}'

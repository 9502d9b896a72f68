# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checks of arguments: strict types, and errors that name the argument and what it takes.

Nothing is coerced that may be a slip: 1.7 is not 1, ``'4'`` is not 4, True is not 1. Numbers of
NumPy and PyTorch are numbers, and come back as Python's own.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

#: Seeds of NumPy end here.
MAX_SEED = 2**32 - 1
#: Bytes of a file's name, on the file systems there are.
MAX_NAME = 255
#: Side of the largest square image that is asked for, in pixels.
MAX_SIDE = 16384


def shorten(value: object, limit: int = 120) -> str:
    """``repr`` of a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f'{text[:limit]}...'


def is_whole_number(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy; True and False do not count."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from ``low`` to ``high``.

    Args:
        name: The argument, for the message.
        value: What came.
        low: Smallest value that is allowed.
        high: Largest one; None for no limit.

    Raises:
        ValueError: If it is not a whole number, or out of range.

    Example:
        >>> import numpy as np
        >>> whole_number('batch_size', np.int64(4), 1)
        4
    """
    allowed = f'a whole number of at least {low}' if high is None else f'from {low} to {high}'
    if not is_whole_number(value):
        kind = 'a whole number ' if high is not None else ''
        raise ValueError(f'{name} must be {kind}{allowed}, got {shorten(value)}')
    if value < low or (high is not None and value > high):
        allowed = f'at least {low}' if high is None else allowed
        raise ValueError(f'{name} must be {allowed}, got {shorten(value)}')
    return int(value)


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; True and False do not count."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def finite_number(name: str, value: Any) -> float:
    """A real number that is neither infinite nor NaN."""
    if not is_number(value):
        raise ValueError(f'{name} must be a number, got {shorten(value)}')
    return float(value)


def seed_number(name: str, value: Any) -> int:
    """A seed, 0 to 2^32 - 1."""
    return whole_number(name, value, 0, MAX_SEED)


def check_image_size(name: str, value: Any) -> int | tuple[int, int]:
    """A side, or (height, width), in pixels."""
    if is_whole_number(value):
        return whole_number(name, value, 1, MAX_SIDE)
    if is_sequence(value) and len(value) == 2:
        height, width = (whole_number(name, side, 1, MAX_SIDE) for side in value)
        return height, width
    raise ValueError(
        f'{name} must be a side in pixels, or (height, width), each 1 to {MAX_SIDE}; got '
        f'{shorten(value)}'
    )


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in allowed:
        takes = ', '.join(allowed)
        raise ValueError(
            f'{name} must be one of {takes}, got {shorten(value)}{is_meant(value, allowed)}'
        )
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{name} must be True or False, got {shorten(value)}')
    return value


def check_path(name: str, value: Any) -> str | Path:
    """A path that is not empty."""
    if not isinstance(value, (str, os.PathLike)) or not str(value) or '\0' in str(value):
        raise ValueError(f'{name} must be a path, as text or a Path; got {shorten(value)}')
    if any(len(os.fsencode(part)) > MAX_NAME for part in Path(value).parts):
        raise ValueError(
            f'{name} must be a path whose names have {MAX_NAME} bytes at most, got {shorten(value)}'
        )
    return value if isinstance(value, str) else Path(value)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, a tuple, an array or the like; text and bytes do not count."""
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        return False
    return isinstance(value, Sequence) or getattr(value, 'ndim', None) == 1


#: Words that are not spelled like the argument that is meant.
_MEANT = {
    'block': 'out_indices',
    'blocks': 'out_indices',
    'layer': 'blocks',
    'layers': 'blocks',
    'model': 'pretrained',
    'out_indices': 'blocks',
    'pretrained': 'model',
    'resolution': 'image_size',
    'size': 'image_size',
    't': 'timestep',
}


def close_name(name: Any, known: Collection[str]) -> str | None:
    """The name among those known that is meant by a slip; None if nothing is close.

    Args:
        name: What came.
        known: The names that there are.

    Example:
        >>> close_name('calibraton', ['calibration', 'selection'])
        'calibration'
    """
    text = str(name)
    if _MEANT.get(text) in known:
        return _MEANT[text]
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(text.casefold(), folded, n=1, cutoff=0.65)
    begun = [each for each in known if text and each.casefold().startswith(text.casefold())]
    if near:
        return folded[near[0]]
    return begun[0] if len(begun) == 1 else None


def is_meant(name: Any, known: Collection[str]) -> str:
    """For the end of a message: the name that is meant, if one is close."""
    found = close_name(name, known)
    return '' if found is None else f'. Is {found!r} meant?'


#: Second spellings of arguments, which every face understands.
SPELLINGS = {'features': 'feature'}
F = TypeVar('F', bound=Callable[..., Any])


def any_spelling(face: F) -> F:
    """Decorate a function or an ``__init__`` so that it understands :data:`SPELLINGS`.

    The documented argument is ``feature``, whether it takes one or several.

    Args:
        face: Takes the first spelling.

    Raises:
        TypeError: When it is called with both.

    Example:
        >>> any_spelling(lambda feature: feature)(features='key')
        'key'
    """

    @functools.wraps(face)
    def understands(*args: Any, **kwargs: Any) -> Any:
        for other in SPELLINGS.keys() & kwargs.keys():
            name = SPELLINGS[other]
            if name in kwargs:
                raise TypeError(f'{name} and {other} are the same argument: give {name}')
            kwargs[name] = kwargs.pop(other)
        return face(*args, **kwargs)

    return cast(F, understands)


def check_names(
    face: str, given: Collection[str], takes: Collection[str], elsewhere: Mapping[str, str]
) -> None:
    """Check the names of further arguments.

    Args:
        face: Who takes them.
        given: The names that came.
        takes: Those that it states.
        elsewhere: Names that belong to something else, and how to write them there.

    Raises:
        TypeError: With the name that is meant.
    """
    for name in given:
        if name in elsewhere and name not in takes:
            raise TypeError(f'{face} has no argument {name!r}: write {elsewhere[name]}')
        found = close_name(name, [*takes, *elsewhere])
        written = found if found in takes else elsewhere.get(found or '')
        hint = '' if found is None else f': is {written} meant?'
        raise TypeError(f'{face} has no argument {name!r}{hint or "."} It takes {", ".join(takes)}')


def keywords(name: str, value: Any, allowed: Collection[str] | None = None) -> dict[str, Any]:
    """A dict with text keys, as a dict of its own; None is an empty one.

    Args:
        name: The argument, for the message.
        value: What came.
        allowed: The keys that there are; any if None.

    Raises:
        ValueError: If it is not a dict, or has other keys.
    """
    if value is None:
        return {}
    takes = '' if allowed is None else f': it takes {", ".join(allowed)}'
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f'{name} must be a dict with text keys{takes}; got {shorten(value)}')
    unknown = [] if allowed is None else sorted(set(value) - set(allowed))
    if unknown:
        hint = is_meant(unknown[0], allowed or ())
        raise ValueError(f'{name} has unknown keys {unknown}{takes}{hint}')
    return dict(value)


def warn_moved(names: Collection[str], argument: str, form: Any) -> None:
    """Say that arguments of their own are now entries of another one.

    Args:
        names: As they were given.
        argument: The one that takes them now.
        form: Its value in the new form.
    """
    warnings.warn(
        f'{", ".join(names)} moved into {argument}: write {argument}={form!r}. The old form will '
        f'be removed in the next version',
        FutureWarning,
        stacklevel=4,
    )


def gathered(
    argument: str, value: Any, key: str, names: Mapping[str, str], flat: dict[str, Any]
) -> Any:
    """The value of an argument that is a dict now, with entries that stood next to it in the past.

    Args:
        argument: The argument.
        value: What came: a dict of its entries, or the first of them alone.
        key: The name of that first entry.
        names: The entry that each old argument is now.
        flat: What came besides; the old arguments are taken out, with a warning.

    Raises:
        ValueError: If an entry is given in both forms.

    Example:
        >>> gathered('noise', 'fixed', 'mode', dict(noise_seed='seed'), {})
        'fixed'
    """
    old = {name: flat.pop(name) for name in names if name in flat}
    if not old:
        return value
    given = dict(value) if isinstance(value, Mapping) else {key: value}
    for name in old:
        if names[name] in given:
            raise ValueError(
                f'{name} and {argument}=dict({names[name]}=...) are the same: give the latter'
            )
    whole = {**given, **{names[name]: entry for name, entry in old.items()}}
    warn_moved(list(old), argument, whole)
    return whole


def three_numbers(name: str, value: Any, positive: bool = False) -> tuple[float, float, float]:
    """One number for all three channels, or three."""
    values = [value] * 3 if is_number(value) else value
    low = 'greater than 0, and 1e9 at most' if positive else '-1e9 to 1e9'
    if (
        not is_sequence(values)
        or len(values) != 3
        or not all(is_number(v) and abs(v) <= 1e9 and (v > 0 or not positive) for v in values)
    ):
        raise ValueError(
            f'{name} must be one number or three (red, green, blue), each {low}; got '
            f'{shorten(value)}'
        )
    first, second, third = (float(v) for v in values)
    return first, second, third

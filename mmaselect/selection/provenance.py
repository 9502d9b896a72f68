# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where a selection comes from, for people who find its result later."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationSet
from mmaselect.version import __version__

#: What belongs in no file, and what stands there instead: tokens of the hub, and users, passwords
#: and signatures in addresses.
_SECRETS = (
    (re.compile(r'hf_[A-Za-z0-9]{8,}'), 'hf_***'),
    (re.compile(r'(\w+://)[^/@\s]+@'), r'\1***@'),
    (re.compile(r'(https?://[^\s?#]*)\?\S*'), r'\1?***'),
)


def provenance(dit: FrozenDiT, calibration: CalibrationSet) -> dict[str, Any]:
    """Model, images, versions and command of a selection; JSON-ready.

    Args:
        dit: The model. One that was built by hand has no name.
        calibration: The images.
    """
    if dit.source is not None:
        model = {name: _plain(value) for name, value in dit.source.as_dict().items()}
    else:
        model = {} if dit.name is None else dict(model=dit.name)
    return dict(
        model=model or None,
        dtype=str(dit.dtype).removeprefix('torch.'),
        images=dict(
            source=without_secrets(calibration.source.described()),
            count=len(calibration.source),
            used=len(calibration),
        ),
        versions=dict(
            mmaselect=__version__,
            # It is of a class of its own, which no checkpoint may hold.
            torch=str(torch.__version__),
            diffusers=diffusers.__version__,
            python=platform.python_version(),
        ),
        command=command_line(sys.argv),
    )


def command_line(words: Sequence[str]) -> str | None:
    """The command of a process, without secrets; None in a notebook or a console.

    Example:
        >>> command_line(['/usr/bin/mmaselect', 'select', 'my photos'])
        "mmaselect select 'my photos'"
    """
    is_interactive = 'ipykernel' in sys.modules or hasattr(sys, 'ps1')
    if is_interactive or not words or words[0] in ('', '-c', '-m'):
        return None
    path, rest = Path(words[0]), [without_secrets(word) for word in words[1:]]
    if path.name == '__main__.py':
        return shlex.join(['python', '-m', path.parent.name, *rest])
    return shlex.join([path.name, *rest])


def without_secrets(text: str) -> str:
    """A text whose tokens, passwords and signatures are starred out.

    Example:
        >>> without_secrets('https://me:word@host/a.zip?Signature=abc')
        'https://***@host/a.zip?***'
    """
    for pattern, stars in _SECRETS:
        text = pattern.sub(stars, text)
    return text


def _plain(value: Any) -> Any:
    """A value that JSON can hold; objects, such as those of a quantization, as their text."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (int, float, bool, type(None))):
        return value
    return without_secrets(str(value))

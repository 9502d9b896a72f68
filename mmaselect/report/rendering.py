# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Templates, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from mmaselect.selection.curve_plot import COLORS
from mmaselect.version import __version__


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader('mmaselect.report'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; text is escaped.

    Args:
        template: File below ``templates``.
        values: Values of its variables.
    """
    return _environment().get_template(template).render(version=__version__, **values)


def image_uri(pixels: np.ndarray, kind: str = 'png') -> str:
    """(H, W, 3) uint8, RGB, as a data URI.

    Args:
        pixels: The image.
        kind: ``'png'``, or ``'jpeg'`` for photographs.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({'quality': 88} if kind == 'jpeg' else {}))
    return f'data:image/{kind};base64,{as_base64(buffer.getvalue())}'


def figure_uri(figure: Figure) -> str:
    """A figure as a data URI, in SVG."""
    buffer = io.BytesIO()
    # A fixed salt: the same figure is the same text.
    with matplotlib.rc_context({'svg.hashsalt': 'mmaselect'}):
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    return f'data:image/svg+xml;base64,{as_base64(buffer.getvalue())}'


#: Colors of a figure, and those of a page that take their places: they follow its dark mode.
_PAGE_COLORS = {
    '#000000': 'var(--ink)',
    '#ffffff': 'var(--card)',
    'white': 'var(--card)',
    COLORS[0]: 'var(--accent)',
}


def inline_svg(figure: Figure) -> Markup:
    """A figure as an SVG element that scales with the page and takes its colors.

    Text stays text.
    """
    buffer = io.StringIO()
    settings: dict[Any, Any] = {'svg.hashsalt': 'mmaselect', 'svg.fonttype': 'none'}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r'\1width="100%"', text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r'\1', text, count=1)
    for old, new in _PAGE_COLORS.items():
        text = re.sub(rf'((?:fill|stroke): ?){old}\b', rf'\1{new}', text)
    # Text has no color of its own in matplotlib's SVG, and is black then.
    return Markup(text.replace('<svg ', '<svg fill="currentColor" ', 1))


def as_base64(data: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(data).decode('ascii')

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The definitions of a criterion that the paper leaves open, to be compared by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

CUTOFFS = (0.15, 0.25, 0.35)
REDUCTIONS = ('channel_mean', 'total')
#: (reduction, denominator, pooling) of the cross spectrum that go together.
CROSS_FORMS = (
    ('channel_mean', 'power', 'image_mean'),
    ('total', 'power', 'image_mean'),
    ('total', 'power', 'ratio_of_sums'),
    ('total', 'signal', 'ratio_of_sums'),
)

#: How option values are called in the short names.
_WORDS = {
    'HighFrequencyRatio': 'HFR',
    'CrossSpectrumHFR': 'cross HFR',
    'FisherScore': 'Fisher score',
    'channel_mean': 'per-channel',
    'image_mean': 'per-image',
    'ratio_of_sums': 'pooled',
    'signal': 'of-signal',
    'power': 'power',
}


def describe(config: Mapping[str, Any]) -> str:
    """A short name of a criterion's config, of its options' values (and of the names of others).

    Example:
        >>> describe(dict(type='HighFrequencyRatio', dims='2d', cutoff=0.25, include_dc=True))
        'HFR 2d 0.25 +DC'
    """
    words = [_WORDS.get(config['type'], config['type'])]
    for key, value in config.items():
        if key in ('type', 'num_classes') or (key == 'shape' and config.get('dims', '2d') != '2d'):
            continue
        if key == 'include_dc':
            words += ['+DC'] if value else []
        elif config['type'] in _WORDS:
            words.append(str(_WORDS.get(value, value)))
        else:
            words.append(f'{key}={value}')
    return ' '.join(words)


def _bands(dims: str, full: bool) -> list[dict[str, Any]]:
    """Cut-off and shape (no shapes in one dimension)."""
    shapes = ('radial', 'square') if dims == '2d' else ('radial',)
    bands = [dict(cutoff=cutoff, shape=shape) for shape, cutoff in product(shapes, CUTOFFS)]
    return bands if full else [band for band in bands if band['shape'] == 'radial']


def variants(num_classes: int, full: bool = False) -> list[dict[str, Any]]:
    """Configs of criteria.

    Without ``full``: every cut-off with every reduction for the three transforms, and one change at
    a time (square band, amplitude, with the mean) at the reference cut-off of 0.15. With it: all
    combinations.

    Args:
        num_classes: For the Fisher score.
        full: Whether to give all combinations.
    """
    configs: list[dict[str, Any]] = []
    for dims in ('2d', 'tokens', 'channels'):
        for band, reduction in product(_bands(dims, full), REDUCTIONS):
            for measure, include_dc in product(('power', 'amplitude'), (False, True)):
                changes = (measure != 'power') + include_dc
                if full or not changes or (changes == 1 and band['cutoff'] == CUTOFFS[0]):
                    configs.append(
                        dict(
                            type='HighFrequencyRatio',
                            dims=dims,
                            **band,
                            reduction=reduction,
                            measure=measure,
                            include_dc=include_dc,
                        )
                    )
        for band, (reduction, denominator, pooling) in product(_bands(dims, full), CROSS_FORMS):
            for include_dc in (False, True):
                if full or not include_dc or band['cutoff'] == CUTOFFS[0]:
                    configs.append(
                        dict(
                            type='CrossSpectrumHFR',
                            dims=dims,
                            **band,
                            reduction=reduction,
                            denominator=denominator,
                            pooling=pooling,
                            include_dc=include_dc,
                        )
                    )
    if not full:
        configs += [
            dict(
                type='HighFrequencyRatio',
                dims='2d',
                cutoff=CUTOFFS[0],
                shape='square',
                reduction='channel_mean',
                measure='power',
                include_dc=False,
            ),
            dict(
                type='CrossSpectrumHFR',
                dims='2d',
                cutoff=CUTOFFS[0],
                shape='square',
                reduction='channel_mean',
                denominator='power',
                pooling='image_mean',
                include_dc=False,
            ),
        ]
    for reduction in ('total', 'channel_mean'):
        configs.append(dict(type='FisherScore', num_classes=num_classes, reduction=reduction))
    return configs

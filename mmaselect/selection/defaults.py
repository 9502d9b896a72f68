# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What decides where a user says nothing. docs/criteria.md has the measurement behind it."""

from typing import Any

#: The paper's criterion as far as it is known (arXiv 2603.25758): plain high-frequency ratio along
#: the tokens (the authors' configs say LOW_FREQ_1D) above their cut-off. Their code for it is not
#: published.
PAPER_CRITERION: dict[str, Any] = dict(type='HighFrequencyRatio', cutoff=0.15, dims='tokens')
#: The criterion that picks.
DEFAULT_CRITERION: dict[str, Any] = dict(type='InstanceSensitivity')
#: Scored on the same images and drawn beside it.
DEFAULT_OTHERS: tuple[dict[str, Any], ...] = (PAPER_CRITERION,)
#: Calibration images.
DEFAULT_NUM_IMAGES = 128
#: How timesteps share the images, and which of these is the default.
METHODS = ('race', 'full')
DEFAULT_METHOD = 'race'
#: Of each comparison in a race.
DEFAULT_CONFIDENCE = 0.999
#: What ``selection='NAME'`` stands for.
PRESETS: dict[str, dict[str, Any]] = {
    'paper': dict(criterion=PAPER_CRITERION, others=()),
}

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What decides where a user says nothing. docs/criteria.md has the measurement behind it."""

#: The criterion that picks.
DEFAULT_CRITERION = dict(type='CrossSpectrumHFR')
#: Scored on the same features and drawn beside it: the paper's own definition.
DEFAULT_OTHERS = (dict(type='HighFrequencyRatio'),)
#: Calibration images.
DEFAULT_NUM_IMAGES = 128

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What decides where a user says nothing. docs/criteria.md has the measurement behind it."""

from typing import Any

#: The paper's criterion as far as it is public (arXiv 2603.25758).
PAPER_CRITERION: dict[str, Any] = dict(type='PaperHFR')
#: The criterion that picks.
DEFAULT_CRITERION: dict[str, Any] = dict(type='InstanceSensitivity')
#: Scored on the same images and drawn next to it.
DEFAULT_OTHERS: tuple[dict[str, Any], ...] = (PAPER_CRITERION,)
#: Calibration images.
DEFAULT_NUM_IMAGES = 'auto'
#: What ``num_images='auto'`` begins with, and its bound: twice as many again and again, while the
#: pick is undecided.
FIRST_IMAGES, BOUND_IMAGES = 128, 1024
#: How timesteps share the images, and which of these is the default.
METHODS = ('race', 'full')
DEFAULT_METHOD = 'race'
#: Confidence of each comparison in a race.
DEFAULT_CONFIDENCE = 0.999
#: What ``selection='NAME'`` stands for. Both have a stated number of images: what they cost, and
#: what the paper's criterion sees, does not depend on how clear the pick is.
PRESETS: dict[str, dict[str, Any]] = {
    'paper': dict(criterion=PAPER_CRITERION, others=(), num_images=FIRST_IMAGES),
    'fast': dict(
        timesteps=(0, 50, 100, 150, 200, 300, 400, 500, 600, 800),
        confidence=0.95,
        refine=25,
        num_images=FIRST_IMAGES,
    ),
}
#: What help texts and the table in the docs say of each.
PRESET_NOTES = {
    'paper': "the paper's criterion, to compare with: on our small models it loses 6.9 points on "
    'held-out cases, where always t = 0 loses 2.4; no published model was measured',
    'fast': 'ten timesteps and finer steps at the end, about six times fewer passes than all 40 '
    'timesteps on all images, and three to four times fewer than the default',
}
#: All of them, for the help of a flag.
PRESET_HELP = '. '.join(f'{name}: {note}' for name, note in PRESET_NOTES.items())

# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Messages of the package, through Python's ``logging``.

Where MMEngine is installed, :func:`mmaselect.openmmlab.messages.forward_messages` hands them to its
current logger, so that they stand in the log of a run.
"""

from __future__ import annotations

import logging

#: The package's logger. Configure it as any other logger of Python.
logger = logging.getLogger('mmaselect')


def log(message: str, level: int = logging.INFO) -> None:
    """Log a message about timestep selection."""
    logger.log(level, f'A-SelecT: {message}')


def warn(message: str) -> None:
    """Log a warning about timestep selection."""
    log(message, logging.WARNING)


def messages_to_stderr() -> None:
    """Have the package's messages on stderr alone, for a command whose stdout a script reads."""
    logger.handlers[:] = [logging.StreamHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False

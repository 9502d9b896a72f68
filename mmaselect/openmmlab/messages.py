# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Messages of the package in MMEngine's log."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from mmaselect.logs import logger


class ToMMEngine(logging.Handler):
    """Hands messages to MMEngine's current logger, which a run writes to its log file."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import MMLogger  # not before there is a message

        current = MMLogger.get_current_instance()
        current.log(record.levelno, record.getMessage(), extra=dict(of_mmaselect=True))


def forward_messages() -> None:
    """Have MMEngine's current logger take the package's messages, once."""
    if not any(isinstance(handler, ToMMEngine) for handler in logger.handlers):
        logger.addHandler(ToMMEngine())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a root logger with handlers would print them again


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Drop what toolboxes print on import about an optional package of theirs."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line != 'Could not import OneDL':
                print(line)

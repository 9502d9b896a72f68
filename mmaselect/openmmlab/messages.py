# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Messages of the package in MMEngine's log."""

from __future__ import annotations

import logging

from mmaselect.logs import logger


class ToMMEngine(logging.Handler):
    """Hands messages to MMEngine's current logger, which a run writes to its log file."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import print_log  # not before there is a message

        print_log(record.getMessage(), logger='current', level=record.levelno)


def forward_messages() -> None:
    """Have MMEngine's current logger take the package's messages, once."""
    if not any(isinstance(handler, ToMMEngine) for handler in logger.handlers):
        logger.addHandler(ToMMEngine())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a root logger with handlers would print them again

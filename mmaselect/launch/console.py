# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The terminal of a run: picks, progress, metrics and warnings; the log file has all the rest."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger

#: Files of MMEngine whose messages tell how far a run is.
_PROGRESS = ('logger_hook.py', 'checkpoint_hook.py', 'early_stopping_hook.py')
#: Other messages of MMEngine that the terminal has.
_SHOWN = ('Load checkpoint from', 'resumed epoch', 'LR is set based on', 'Auto resumed from')
#: Warnings of MMEngine to its own developers.
_DEVELOPERS = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


class TerminalFilter(logging.Filter):
    """Lets through what a person at a terminal follows."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            return not text.startswith(_DEVELOPERS)
        if getattr(record, 'of_mmaselect', False) or '/mmaselect/' in record.pathname:
            return True
        if record.pathname.endswith(_PROGRESS):
            return not text.startswith('Exp name:')
        return text.startswith(_SHOWN)


class _Terse:
    """A runner's part that leaves environment, config and hooks to the log file."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """The logger of a ``Runner``."""
        return _shorten(super().build_logger(*args, **kwargs))  # type: ignore[misc]

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """The strategy of a ``FlexibleRunner``, which has the logger."""
        strategy = super().build_strategy(*args, **kwargs)  # type: ignore[misc]
        _shorten(strategy.logger)
        return strategy


def _shorten(logger: MMLogger) -> MMLogger:
    """Have the terminal get what :class:`TerminalFilter` lets through."""
    for handler in logger.handlers:
        # A FileHandler is a StreamHandler, too.
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            handler.addFilter(TerminalFilter())
    logger.info(f'log: {logger.log_file}', extra=dict(of_mmaselect=True))
    return logger


def terse(kind: type[Any]) -> type[Any]:
    """A class of runners that leaves environment, config and hooks to its log file.

    Args:
        kind: A class of MMEngine's runners, ``Runner`` or ``FlexibleRunner``, or one of theirs.
    """
    return type(kind.__name__, (_Terse, kind), dict(__doc__=kind.__doc__))

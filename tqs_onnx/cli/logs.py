"""Prints the log records of this project as lines on stderr."""

from __future__ import annotations

import logging

import click

from tqs_onnx.cli.in_flags import text_in_flags

LEVELS = ("debug", "info", "warning", "error")
_LOGGERS = ("tqs_onnx", "tqs_passes")


class _Stderr(logging.Handler):
    """Prints notes unchanged, warnings with a prefix, and debug records with their module."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        text = text_in_flags(record.getMessage())
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        elif record.levelno <= logging.DEBUG:
            text = f"debug: {record.name}: {text}"
        click.echo(text, err=True)


def log_to_stderr(level: str) -> None:
    """Print the records of this project's loggers from a level up; a second call changes the level."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
            logger.addHandler(_Stderr())

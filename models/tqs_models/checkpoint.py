# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="import-not-found"
"""Load a checkpoint file into a network of a package, with errors that tell the user what to do.

The packages' own loaders import torch and safetensors; importing this module needs neither.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

from tqs_passes.errors import InputError, one_line

_LONGEST = 200
_REFUSALS = (OSError, ValueError, KeyError, AssertionError, RuntimeError, EOFError, pickle.UnpicklingError)


def load_weights(load: Callable[[str], object], path: Path, what: str) -> None:
    """Call a package's loader.

    Parameters
    ----------
    load : Callable
        Loads the file at a path.
    path : Path
    what : str
        Description of the required file for the message, e.g. ``the model.safetensors of TimesFM-2.5``.

    Raises
    ------
    InputError
        The file does not exist, or does not contain the weights of this network.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), todo=f"Give {what}")
    refusals: tuple[type[Exception], ...] = (*_REFUSALS, *_damaged())
    try:
        load(str(path))
    except refusals as error:
        reason = one_line(str(error))[:_LONGEST] or type(error).__name__
        raise InputError(
            f"does not hold the weights of this network ({reason})", where=str(path), todo=f"Give {what}"
        ) from error


def _damaged() -> tuple[type[Exception], ...]:
    """Return the exceptions of safetensors for an invalid file, if safetensors is installed."""
    try:
        from safetensors import SafetensorError
    except ImportError:
        return ()
    return (SafetensorError,)

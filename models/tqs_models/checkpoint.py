"""Load a checkpoint file into a network of a package, with errors a user can act on.

torch and safetensors are imported by the packages' own loaders; importing this module needs neither.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

from tqs_passes.errors import InputError, one_line


def load_weights(load: Callable[[str], object], path: Path, what: str) -> None:
    """Call a package's loader.

    Parameters
    ----------
    load : Callable
        Takes the path of a file.
    path : Path
    what : str
        What the file must be, for the message, e.g. ``the model.safetensors of TimesFM-2.5``.

    Raises
    ------
    InputError
        There is no such file, or it does not hold the weights of this network.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), todo=f"Give {what}")
    try:
        load(str(path))
    except (
        OSError,
        ValueError,
        KeyError,
        AssertionError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise _refused(error, path, what) from error
    except Exception as error:
        if (
            type(error).__name__ != "SafetensorError"
        ):  # a class of an optional package, derived from Exception
            raise
        raise _refused(error, path, what) from error


def _refused(error: Exception, path: Path, what: str) -> InputError:
    reason = one_line(str(error))[:200] or type(error).__name__
    return InputError(
        f"does not hold the weights of this network ({reason})", where=str(path), todo=f"Give {what}"
    )

"""Connects to a Ray cluster: imports Ray on demand, connects and disconnects.

The only module that imports Ray, an optional dependency. Ray prints node events on stdout, which is reserved for the
command's result; its output is discarded while the cluster is in use.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

from tqs_passes.errors import InputError

#: Without these settings Ray warns about a future default and sends usage statistics to its developers.
_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
#: Timeout for an answer of the cluster's head, in seconds.
_CONNECT_S = 10.0


def imported_ray() -> ModuleType:
    """Return the module `ray`.

    Raises
    ------
    InputError
        Ray is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            "Ray is not installed", where="`engine` ray", todo="Install it: pip install 'tqs-onnx[ray]'"
        ) from error


@contextlib.contextmanager
def connected(address: str | None) -> Generator[ModuleType]:
    """Yield the module `ray`, connected; a connection opened here is closed afterwards, an existing one is kept.

    Parameters
    ----------
    address : str or None
        ``host:port`` of the cluster's head; None: the cluster of this machine, or else a new one on this machine.

    Raises
    ------
    InputError
        Ray is not installed, no cluster answers at the address, or it runs another version of Python or Ray.
    """
    ray = imported_ray()
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"{address!r} is the address of a Ray client",
            where="`address`",
            todo="Give the head's own address, e.g. host:6379, on a machine of the cluster",
        )
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        if ray.is_initialized():
            yield ray
            return
        if address is not None:
            _require_listening(address)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Ray installs its own handler and does not restore this one.
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"the Ray cluster cannot be reached: {error}",
                where="`address`" if address else "`engine` ray",
                todo="See `ray status` on its head",
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)


def _require_listening(address: str) -> None:
    """Refuse an address without a listener; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"{address!r} is not HOST:PORT", where="`address`", todo="Give e.g. 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing listens at {address} ({error})", where="`address`", todo="See `ray status` on its head"
        ) from error

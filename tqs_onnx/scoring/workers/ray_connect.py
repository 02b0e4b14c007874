"""Connects to a Ray cluster: imports Ray on demand, connects and disconnects.

The only module that imports Ray, an optional dependency. Ray prints node events on stdout, which is reserved for the
command's result; its output is discarded while the cluster is in use.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

from tqs_passes.errors import InputError

#: Without these settings Ray warns about a future default and sends usage statistics to its developers.
_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
#: Timeout for an answer of the cluster's head, in seconds.
CONNECT_S = 10.0
#: HTTP/2: the greeting of a client with empty settings; the header of a frame, and the type of one with settings.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADER_BYTES, _SETTINGS = 9, b"\x04"


class LostError(InputError):
    """The head of the cluster no longer answers; the process should end by `end_if_abandoned`."""


def _abandon(ray: ModuleType) -> None:
    """Leave a cluster whose head is gone without a word to it: Ray would wait a minute and then end this process."""
    for function in (ray.shutdown, getattr(ray.shutdown, "__wrapped__", None)):
        if function is not None:
            atexit.unregister(function)


def end_if_abandoned(code: int) -> None:
    """End this process now, with an exit code, if it is still connected to a cluster whose head is gone.

    Ray's threads use what Python's end has freed, and the process would crash.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
        lost = False
        try:
            yield ray
        except LostError:
            lost = True
            _abandon(ray)
            raise
        finally:
            if not lost:
                ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)


def _require_listening(address: str) -> None:
    """Refuse an address where no cluster answers; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"{address!r} is not HOST:PORT", where="`address`", todo="Give e.g. 10.0.0.1:6379")
    what = complaint_about(address)
    if what:
        raise InputError(what, where="`address`", todo="See `ray status` on its head")


def complaint_about(address: str, timeout_s: float = CONNECT_S) -> str:
    """Return why the head of a cluster does not answer at ``host:port``, or an empty text if it does.

    Ray's head speaks gRPC, that is HTTP/2: whoever greets it must be sent its settings. Everything, the look-up of the
    name included, takes at most `timeout_s`.
    """
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(_greeted(address, timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return said[0] if said else f"nothing answers at {address} within {timeout_s:g} s"


def _greeted(address: str, timeout_s: float) -> str:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as stream:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # only Ray has the certificates
            stream.sendall(_GREETING)
            answer = b""
            while len(answer) < _HEADER_BYTES and (more := stream.recv(_HEADER_BYTES)):
                answer += more
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that no host can have
        return f"nothing listens at {address} ({error})"
    return "" if answer[3:4] == _SETTINGS else f"what listens at {address} is not a Ray cluster"

"""Stops a run of the runtime when the user presses Ctrl-C, or when memory runs out.

Python handles a signal between two of its own instructions, so never while the runtime computes: a Loop without end
could not be interrupted, and one that grows would take the machine with it. While a run is watched, the system's signal
handler writes into a pipe (`signal.set_wakeup_fd`); a thread reads it, looks at the memory of this process a few times
a second, and sets the run's flag `terminate`, which the runtime checks before every node.

Where another library has claimed the wake-up pipe, outside the main thread, and on Windows, only memory is watched.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Protocol

#: Share of the machine's memory, or of this process's control group, beyond which a run is stopped.
_MOST_SHARE = 0.9
#: One part in so many of that memory, or of `max_memory`, is for one thing before it goes to a file.
_SHARE = 4
_LOOK_S = 0.2
_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


class Stoppable(Protocol):
    """The runtime's options of one run."""

    terminate: bool


class Guard:
    """The runs of this process that are watched, and the thread that watches them; there is one (`guard`)."""

    def __init__(self) -> None:
        self.limit_bytes = 0
        self._runs: dict[int, Stoppable] = {}
        self._ends: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def enter(self, run: Stoppable) -> int:
        """Watch a run; return what `leave` needs."""
        if self._ends is None:
            self._start()
        self._runs[id(run)] = run
        if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
            return -2
        assert self._ends is not None
        before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        if before != -1:  # another library's: it must hear the signals itself
            signal.set_wakeup_fd(before)
            return -2
        return before

    def leave(self, run: Stoppable, before: int) -> None:
        """End the watch over a run."""
        if before != -2:
            signal.set_wakeup_fd(before)
        self._runs.pop(id(run), None)

    def is_full(self) -> bool:
        """Whether this process holds more memory than a run may take."""
        return resident_bytes() > self.limit_bytes > 0

    def _start(self) -> None:
        with self._lock:
            if self._ends is not None:
                return
            self.limit_bytes = self.limit_bytes or int(_MOST_SHARE * memory_bytes())
            read, write = os.pipe()
            os.set_blocking(write, False)
            os.set_blocking(read, False)
            self._ends = read, write
            threading.Thread(target=self._watch, args=(read,), daemon=True, name="tqs-guard").start()

    def _watch(self, read: int) -> None:
        while True:
            seen = b""
            if sys.platform == "win32":  # pipes cannot be waited for there
                threading.Event().wait(_LOOK_S)
            elif select.select([read], [], [], _LOOK_S)[0]:
                with contextlib.suppress(BlockingIOError):
                    seen = os.read(read, 64)
            if _SIGNALS.intersection(seen) or (self._runs and self.is_full()):
                for run in list(self._runs.values()):
                    run.terminate = True

    def forget(self) -> None:
        """Start anew in a forked process, which has no thread."""
        self._runs, self._ends, self._lock = {}, None, threading.Lock()


def memory_bytes() -> int:
    """Return the memory of this machine, or of this process's control group if that is less; 0 if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not this version of control groups, or "max"
            total = min(total, int(Path(file).read_text(encoding="utf-8")))
    return total


def most_in_memory(max_memory: int | None) -> int | None:
    """Return the bytes that one thing may take in memory before it goes to a file; None if nothing says."""
    return (memory_bytes() if max_memory is None else max_memory) // _SHARE or None


def resident_bytes() -> int:
    """Return the memory that this process holds; 0 if unknown."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123  (a few times a second)
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):
        return 0


def handle_signals() -> None:
    """Let Python run the handlers of signals that have arrived: it does so when a function is entered."""


guard = Guard()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=guard.forget)

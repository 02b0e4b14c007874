"""Bounds the threads of NumPy's and SciPy's linear algebra while a weight is rounded.

OpenBLAS starts a thread for each core and lets idle ones spin. For matrices of up to about 1,000 rows a second thread
saves no time on an idle machine; on a busy one it takes 5 to 25 times the processor time of one thread.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

#: Numbers of a weight up to which one thread is used unless more are asked for.
SMALL = 1 << 20


@contextmanager
def blas_threads(threads: int, n_numbers: int) -> Generator[None]:
    """Let BLAS and LAPACK use at most so many threads, in the whole process.

    Parameters
    ----------
    threads : int
        As in `RunOptions`; 0: one for a small weight, as many as the libraries have for a large one.
    n_numbers : int
        Numbers of the weight.
    """
    limit = threads or (1 if n_numbers <= SMALL else None)
    if limit is None:
        yield
        return
    with _loaded().limit(limits=limit, user_api="blas"):
        yield


@cache
def _loaded() -> Any:  # noqa: ANN401 - the package has no types
    """Return the BLAS libraries of this process: those of NumPy and SciPy, loaded with this package."""
    return ThreadpoolController()

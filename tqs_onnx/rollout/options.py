"""Options of sessions and rollouts, as values. Never imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tqs_passes.errors import InputError

Provider = Literal["cpu", "cuda", "tensorrt"]
AnyProvider = Literal["auto", "cpu", "cuda", "tensorrt"]
Optimize = Literal["all", "extended", "basic", "disable"]

PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The provider, the batch size and the threads of rollouts.

    Parameters
    ----------
    provider : {"auto", "cpu", "cuda", "tensorrt"}
        The execution provider; `auto`: CUDA if a session actually runs on it, otherwise the CPU.
    batch : int or None
        Maximum number of contexts per call; None: 32. A model with a fixed batch size runs with that size.
    threads : int
        Threads per call; 0: the runtime's choice.

    Raises
    ------
    InputError
        The provider is unknown, or a number is too small.
    """

    provider: AnyProvider = "auto"
    batch: int | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.provider not in ("auto", *PROVIDERS):
            raise InputError(
                f"unknown `provider` {self.provider!r}", todo=f"Choose auto, {', '.join(PROVIDERS)}"
            )
        if self.batch is not None and self.batch < 1:
            raise InputError(f"`batch` must be at least 1, not {self.batch}")
        if self.threads < 0:
            raise InputError(f"`threads` must be at least 0, not {self.threads}")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Deviations from the runtime's stock settings.

    Parameters
    ----------
    threads : int
        Threads inside an operator; 0: the runtime's choice.
    optimize : str
        Graph optimization level: `all` (stock), `extended`, `basic` or `disable`.
    memory_pattern : bool
        Plan one memory block for all tensors of a call once its shapes are known (stock). It is allocated in addition
        to the memory of the first call.
    config : mapping of str to str
        Session config entries, e.g. ``{"session.disable_quant_qdq": "1"}``.
    """

    threads: int = 0
    optimize: Optimize = "all"
    memory_pattern: bool = True
    config: Mapping[str, str] = field(default_factory=dict[str, str])

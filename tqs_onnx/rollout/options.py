"""Where and how a session runs: the choices, as values. Never imports onnxruntime."""

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
    """Where rollouts run, and how much at a time.

    Parameters
    ----------
    provider : {"auto", "cpu", "cuda", "tensorrt"}
        The execution provider; `auto`: CUDA where a session really runs on it, else the CPU.
    batch : int or None
        Most contexts a call; None: 32. A model of a fixed batch size runs with that size.
    threads : int
        Threads a call; 0: the runtime's choice.

    Raises
    ------
    InputError
        The provider is unknown, or a number is too small.
    """

    provider: AnyProvider = "auto"
    batch: int | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
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
    """What may differ from the runtime's stock settings.

    Parameters
    ----------
    threads : int
        Threads inside an operator; 0: the runtime's choice.
    optimize : str
        Graph optimization level: `all` (stock), `extended`, `basic` or `disable`.
    memory_pattern : bool
        Plan a block for all that a call needs once its shapes are known (stock); it comes on top of what the first
        call took.
    config : mapping of str to str
        Session config entries, e.g. ``{"session.disable_quant_qdq": "1"}``.
    """

    threads: int = 0
    optimize: Optimize = "all"
    memory_pattern: bool = True
    config: Mapping[str, str] = field(default_factory=dict[str, str])

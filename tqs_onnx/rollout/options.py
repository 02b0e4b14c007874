"""Where and how a session runs: the choices, as values. Never imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Provider = Literal["cpu", "cuda", "tensorrt"]
Optimize = Literal["all", "extended", "basic", "disable"]

PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt")


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

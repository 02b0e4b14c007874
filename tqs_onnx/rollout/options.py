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
    """The provider, the batch size, the threads and the memory of rollouts.

    Parameters
    ----------
    provider : {"auto", "cpu", "cuda", "tensorrt"}
        The execution provider; `auto`: CUDA if a session actually runs on it, otherwise the CPU.
    batch : int or None
        Maximum number of contexts per call; None: 32. A model with a fixed batch size runs with that size.
    threads : int
        Threads per call; 0: the runtime's choice.
    devices : tuple of int
        GPUs by number, each once; empty: the first. Scoring runs a worker on each, everything else on the first.
    strict_device : bool
        Refuse a model of which the runtime places nodes on the CPU although a GPU was asked for.
    max_memory : int or None
        Bytes that a job may hold. Scoring is planned within it (`tqs_onnx.scoring.plan.memory`); contexts and nominal
        rollouts that take more than a quarter of it lie in files; sessions on a GPU take no more for their tensors.
        None: the memory of the machine in its place, and no limit on that of the GPU.

    Raises
    ------
    InputError
        The provider is unknown, a number is too small, or a device is named twice or for the CPU.
    """

    provider: AnyProvider = "auto"
    batch: int | None = None
    threads: int = 0
    devices: tuple[int, ...] = ()
    strict_device: bool = False
    max_memory: int | None = None

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
        if self.max_memory is not None and self.max_memory < 1:
            raise InputError(f"`max_memory` must be at least 1, not {self.max_memory}")
        if min(self.devices, default=0) < 0 or len(set(self.devices)) < len(self.devices):
            named = ",".join(map(str, self.devices))
            raise InputError(f"`devices` must name each GPU once, from 0, not {named}", todo="Give e.g. 0,1")
        if self.devices and self.provider == "cpu":
            raise InputError("`devices` names GPUs", todo="Set `provider` to cuda, or leave it out")

    @property
    def device(self) -> int:
        """The GPU of everything that runs in this process."""
        return self.devices[0] if self.devices else 0

    def for_scoring(self) -> SessionOptions:
        """Return the options of a session whose runs are compared with each other, within `max_memory`."""
        return SessionOptions(
            self.threads,
            memory_pattern=self.max_memory is None,
            device=self.device,
            strict_device=self.strict_device,
            max_device_bytes=self.max_memory,
        )

    def for_serving(self) -> SessionOptions:
        """Return the options of a session that runs a file as a server would."""
        return SessionOptions(self.threads, device=self.device, strict_device=self.strict_device, stock=True)


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
    arena : bool
        Keep the memory of a call for the next one (stock); else it goes back to the system.
    config : mapping of str to str
        Session config entries, e.g. ``{"session.disable_quant_qdq": "1"}``.
    device : int
        Number of the GPU; unused on the CPU.
    stock : bool
        Leave a GPU's own settings as they are: TF32 on, any convolution algorithm, kernels that may not repeat bits.
    max_device_bytes : int or None
        Limit of the memory that the session takes from a GPU for its tensors; not for a `stock` session.
    strict_device : bool
        Refuse to place any node on the CPU, if another provider is asked for.
    """

    threads: int = 0
    optimize: Optimize = "all"
    memory_pattern: bool = True
    arena: bool = True
    config: Mapping[str, str] = field(default_factory=dict[str, str])
    device: int = 0
    stock: bool = False
    max_device_bytes: int | None = None
    strict_device: bool = False

"""Opens models in onnxruntime and runs them with values that stay on the device.

The only module that imports onnxruntime. There are no silent fallbacks: if a requested provider is not available,
an error is raised. Every runtime error becomes one line; the runtime's own log is off, because it would repeat the
same error.

A server passes none of the options below, so the CPU runs under stock options by default. On a GPU, runs that are
compared with each other must differ only by what was perturbed; `provider_options` says what is passed for that, and
what is left out when a file runs as a server would run it. Nodes that the runtime places on the CPU although a GPU was
asked for are counted (`Session.placement`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
import math
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tqs_onnx.rollout.guard import guard, handle_signals
from tqs_onnx.rollout.options import PROVIDERS, AnyProvider, Optimize, Provider, SessionOptions
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.provider_options import NAMES, TF32_OVERRIDE, chain_of, rounds_to_tf32
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port, port
from tqs_passes.errors import InputError

__all__ = [
    "PROVIDERS",
    "Provider",
    "Session",
    "SessionOptions",
    "Value",
    "available_providers",
    "host_value",
    "open_session",
    "probe_provider",
    "resolve_provider",
    "runtime_version",
]

_LOG = logging.getLogger(__name__)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FATAL = 4
#: A value that is freed as soon as a run is over.
_BIG_BYTES = 1 << 20
#: Whether this runtime says where it places nodes (since 1.24).
_TELLS_PLACEMENT = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
_STATE = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # the runtime's error classes
_LEVELS: dict[Optimize, Any] = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
    OSError,
    *(
        kind
        for kind in vars(_STATE).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == _STATE.__name__
    ),
)


class Value:
    """One tensor on the device: a thin wrapper, because the runtime's type must not leave this module.

    On the CPU, a value created from an array shares its memory: do not modify the array while the value is in use.
    """

    __slots__ = ("_held", "dtype", "raw", "shape")

    def __init__(self, raw: ort.OrtValue, dtype: np.dtype[Any], held: NDArray[Any] | None = None) -> None:
        self.raw = raw
        self._held = held
        self.dtype = dtype
        self.shape: tuple[int, ...] = tuple(raw.shape())

    @property
    def n_bytes(self) -> int:
        """Size of its elements in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> NDArray[Any]:
        """Return the values on the host: on the CPU a view that keeps the memory alive, otherwise a copy."""
        if self._held is not None:
            return self._held  # the runtime's view of it would not keep it alive
        if self.dtype != _BFLOAT16:
            result: NDArray[Any] = self.raw.numpy()
            return result
        # The runtime returns no bfloat16 arrays. Such values are always in host memory, see Session.run.
        n = int(np.prod(self.shape, dtype=np.int64))
        if n == 0:
            return np.zeros(self.shape, _BFLOAT16)
        raw = ctypes.string_at(self.raw.data_ptr(), 2 * n)
        return np.frombuffer(raw, _BFLOAT16).reshape(self.shape)


class Session:
    """A model loaded on one provider; created by `open_session`.

    Parameters
    ----------
    raw : onnxruntime.InferenceSession
    provider : str
        The provider it actually runs on.
    device : int
        Number of the GPU; 0 on the CPU.
    placement : Placement or None
        Where its nodes run; None on the CPU, and if the runtime does not say.
    """

    def __init__(
        self,
        raw: ort.InferenceSession,
        provider: Provider,
        device: int = 0,
        placement: Placement | None = None,
    ) -> None:
        self._raw = raw
        self._device = "cpu" if provider == "cpu" else "cuda"
        self.provider: Provider = provider
        self.device = 0 if provider == "cpu" else device
        self.placement = placement
        self.signature = ModelSignature(
            tuple(_port(i.name, i.type, i.shape) for i in raw.get_inputs()),
            tuple(_port(o.name, o.type, o.shape) for o in raw.get_outputs()),
        )
        self._dtypes = {p.name: p.dtype for p in self.signature.outputs}
        # Unused bindings with their bound inputs, so that an unchanged input is bound only once. A list, because two
        # threads that run concurrently take one each.
        self._bindings: list[tuple[ort.IOBinding, dict[str, Value]]] = []

    @property
    def on_host(self) -> bool:
        """Whether values are in host memory, so that reading them is free."""
        return self._device == "cpu"

    def value(self, array: NDArray[Any]) -> Value:
        """Put an array on the device; on the CPU, share its memory if it is contiguous.

        Raises
        ------
        InputError
            The device is out of memory.
        """
        held = np.ascontiguousarray(array).reshape(array.shape)
        try:
            if self.on_host or held.dtype == _BFLOAT16:
                return host_value(held)
            return Value(ort.OrtValue.ortvalue_from_numpy(held, self._device, self.device), held.dtype)
        except _ERRORS as error:
            raise InputError(
                f"{held.nbytes} bytes do not fit on the device: {_text(error)}", todo="Use a smaller `batch`"
            ) from error

    def run(
        self, inputs: Mapping[str, Value], outputs: Sequence[str] | None = None, *, where: str = ""
    ) -> dict[str, Value]:
        """Run the model once; outputs are fresh buffers on the device, safe to keep and to feed back.

        Parameters
        ----------
        inputs : mapping of str to Value
        outputs : sequence of str, optional
            The requested outputs, default all.
        where : str
            The location that errors name, e.g. ``step 3``.

        Raises
        ------
        InputError
            The runtime failed: a wrong shape or type, no memory, or a missing kernel.
        """
        names = list(self._dtypes) if outputs is None else list(outputs)
        try:
            binding, bound = self._binding(inputs)
            big = False
            for name, value in inputs.items():
                if bound.get(name) is not value:
                    binding.bind_ortvalue_input(name, value.raw)
                    bound[name] = value  # also keeps its memory alive while it is bound
                    big = big or value.n_bytes > _BIG_BYTES
            for name in names:
                if self._dtypes.get(name) == _BFLOAT16:
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_output(name, self._device, self.device)
            self._run(binding)
            raw = binding.get_outputs()
            binding.clear_binding_outputs()  # otherwise the next run would write into these results
        except _ERRORS as error:
            raise InputError(f"the model failed: {_text(error)}", where=where) from error
        if big:
            binding.clear_binding_inputs()  # freeing the memory matters more than saving the time to bind again
        else:
            self._bindings.append((binding, bound))
        return {n: Value(v, self._dtypes[n]) for n, v in zip(names, raw, strict=True)}

    def _run(self, binding: ort.IOBinding) -> None:
        """Run what is bound; Ctrl-C and a lack of memory end it."""
        options = ort.RunOptions()
        while True:
            before = guard.enter(options)
            try:
                self._raw.run_with_iobinding(binding, options)
            except _ERRORS:
                if not options.terminate:
                    raise
                if guard.is_full():
                    raise MemoryError(f"it takes more than {guard.limit_bytes >> 20} MiB of memory") from None
            else:
                return
            finally:
                guard.leave(options, before)
            handle_signals()  # raises KeyboardInterrupt, unless the program handles Ctrl-C in another way
            options.terminate = False

    def _binding(self, inputs: Mapping[str, Value]) -> tuple[ort.IOBinding, dict[str, Value]]:
        """Return a binding whose inputs are at most these, and the values it has bound."""
        while self._bindings:
            binding, bound = self._bindings.pop()
            if bound.keys() <= inputs.keys():
                return binding, bound
        return self._raw.io_binding(), {}


def host_value(array: NDArray[Any]) -> Value:
    """Return a value in host memory that shares the array's memory; for `open_session(stored=…)`."""
    held = np.ascontiguousarray(array).reshape(array.shape)
    if held.dtype == _BFLOAT16:
        make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
        return Value(make(held.view(np.uint16), onnx.TensorProto.BFLOAT16), held.dtype, held)
    return Value(ort.OrtValue.ortvalue_from_numpy(held), held.dtype, held)


def open_session(
    model: bytes | Path,
    *,
    provider: AnyProvider = "cpu",
    options: SessionOptions | None = None,
    folder: Path | None = None,
    stored: Mapping[str, Value] | None = None,
) -> Session:
    """Load a model.

    Parameters
    ----------
    model : bytes or Path
        A serialized model, or its path (required above 2 GB without external data).
    provider : str
        `cpu`, `cuda`, `tensorrt`, or `auto`: CUDA if it actually works, otherwise the CPU.
    options : SessionOptions, optional
    folder : Path, optional
        The folder of the external data, for a model given as bytes.
    stored : mapping of str to Value, optional
        Host-memory values of initializers that the model declares as external data. They are shared, not copied: keep
        them alive and unchanged while the session lives.

    Raises
    ------
    InputError
        The model does not load, or the provider is missing or fell back to the CPU.
    """
    options = options or SessionOptions()
    provider = resolve_provider(provider)
    _require(provider)
    _silence()
    if not options.stock:
        _warn_of_tf32(provider)
    said = _preload(provider)
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = options.threads
    settings.graph_optimization_level = _LEVELS[options.optimize]
    settings.enable_mem_pattern = options.memory_pattern
    settings.enable_cpu_mem_arena = options.arena
    settings.use_deterministic_compute = provider != "cpu" and not options.stock
    chain = chain_of(provider, options)
    for key, text in _entries(options, folder).items():
        settings.add_session_config_entry(key, text)
    if provider != "cpu" and _TELLS_PLACEMENT:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    elif provider != "cpu" and options.strict_device:  # this runtime can refuse, but not name the nodes
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        chain = chain[:-1]
    if stored:
        settings.add_external_initializers(list(stored), [v.raw for v in stored.values()])
    try:
        raw = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            settings,
            providers=chain,
            enable_fallback=0,  # otherwise it prints to stdout and continues on the CPU
        )
    except _ERRORS as error:
        if "TensorRT libraries" in str(error):
            raise InputError(
                "tensorrt was requested but its libraries do not load",
                todo="Install TensorRT, or set `provider` to cuda or cpu",
            ) from error
        where = str(model) if isinstance(model, Path) else ""
        raise InputError(f"the model does not load: {_text(error)}", where=where) from error
    if NAMES[provider] not in raw.get_providers():
        reason = f" ({said})" if said else ""
        raise InputError(
            f"{provider} was requested but the runtime fell back to {_short(raw.get_providers()[0])}{reason}",
            todo="Install a driver and the GPU libraries (tqs-onnx[cuda]), or set `provider` to cpu",
        )
    placement = None if provider == "cpu" else _placement(raw)
    if options.strict_device and placement is not None and placement.on_cpu:
        raise InputError(
            str(placement),
            where=str(model) if isinstance(model, Path) else "",
            todo="Export the model without these operators, or leave out `strict_device`",
        )
    return Session(raw, provider, options.device, placement)


def _placement(raw: ort.InferenceSession) -> Placement | None:
    """Return where the runtime placed the nodes that it did not fold away; None if it does not say."""
    if not _TELLS_PLACEMENT:
        return None
    parts = raw.get_provider_graph_assignment_info()
    return Placement.of((part.ep_name, node.op_type) for part in parts for node in part.get_nodes())


def resolve_provider(provider: AnyProvider) -> Provider:
    """Return the actual provider: for `auto`, CUDA if it actually works, otherwise the CPU."""
    return _best_provider() if provider == "auto" else provider


@cache
def _best_provider() -> Provider:
    """Return the provider that `auto` selects on this machine; determined once per process, and logged."""
    reason = probe_provider("cuda")
    if reason is None:
        _LOG.info("running on CUDA")
        return "cuda"
    _LOG.info("running on the CPU: CUDA does not work here (see tqs doctor)")
    _LOG.debug("%s", reason)
    return "cpu"


def available_providers() -> tuple[Provider, ...]:
    """Return the providers built into this runtime; `probe_provider` tests whether they work."""
    built = set(ort.get_available_providers())
    return tuple(p for p in PROVIDERS if NAMES[p] in built)


def probe_provider(provider: Provider) -> str | None:
    """Open and run a one-node model on a provider; return None if it works, otherwise the reason."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "probe",
        [info("x", onnx.TensorProto.FLOAT, [2])],
        [info("y", onnx.TensorProto.FLOAT, [2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    try:
        session = open_session(model.SerializeToString(), provider=provider)
        doubled = session.run({"x": session.value(np.ones(2, np.float32))})["y"].numpy()
    except InputError as error:
        return error.what
    return None if doubled.tolist() == [2.0, 2.0] else "it computes 1 + 1 incorrectly"


def installed_runtimes() -> tuple[str, ...]:
    """Return the installed packages that contain onnxruntime; two or more overwrite each other's files."""
    known = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
    names = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in distributions()}
    return tuple(name for name in known if name in names)


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(ort.__version__)


def _require(provider: Provider) -> None:
    if provider not in PROVIDERS:
        raise InputError(f"unknown provider {provider!r}", todo="Choose cpu, cuda, tensorrt or auto")
    if provider not in available_providers():
        raise InputError(
            f"{provider} was requested but this build of onnxruntime does not contain it",
            todo="Install onnxruntime-gpu (pip install 'tqs-onnx[cuda]'), or set `provider` to cpu",
        )


def _entries(options: SessionOptions, folder: Path | None) -> dict[str, str]:
    entries = dict(options.config)
    if folder is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(folder.resolve())
    return entries


@cache
def _warn_of_tf32(provider: Provider) -> None:
    """Say once per process that this provider cannot be told to leave TF32."""
    if rounds_to_tf32(provider):
        _LOG.warning(
            "TensorRT rounds matrix products to TF32; only %s=0 in the environment turns that off",
            TF32_OVERRIDE,
        )


def _preload(provider: Provider) -> str:
    """Load CUDA from Python packages if installed; return the first error that this printed to stdout."""
    if provider == "cpu" or not hasattr(ort, "preload_dlls"):
        return ""
    with _captured_stdout() as text:
        ort.preload_dlls()
    return next((line for line in text.getvalue().splitlines() if line.startswith("Failed")), "")


@contextlib.contextmanager
def _captured_stdout() -> Generator[io.StringIO]:
    """Capture what a library prints to stdout, because stdout is reserved for the JSON output."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield text


def _silence() -> None:
    ort.set_default_logger_severity(_FATAL)
    ort.disable_telemetry_events()


def _port(name: str, kind: str, shape: Sequence[object]) -> Port:
    """Return a port from the runtime's description, which reports an undeclared rank as a scalar."""
    if not kind.startswith("tensor("):
        raise InputError(
            "this graph input or output is not a tensor",
            where=name,
            todo="Export the model with tensors only",
        )
    element = kind.removeprefix("tensor(").removesuffix(")").upper()
    dims: tuple[Dim, ...] = tuple(d if isinstance(d, int | str) else "?" for d in shape)
    return port(name, onnx.TensorProto.DataType.Value(element), dims or None)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _text(error: Exception) -> str:
    """Return the runtime's message without its prefix ``[ONNXRuntimeError] : 1 : FAIL :``."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text or type(error).__name__

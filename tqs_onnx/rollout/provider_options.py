"""What a session passes to its execution providers, as plain dictionaries. Never imports onnxruntime.

    scoring    TF32 off, a fixed choice of convolution algorithm, an arena that grows by what is asked for
    a file     nothing but the device: a server such as Triton passes none of these, so TF32 is on (the CUDA default)

TensorRT has no key for TF32; only NVIDIA_TF32_OVERRIDE=0 in the environment turns it off there (onnxruntime issue
26029), for the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tqs_onnx.rollout.options import Provider, SessionOptions

#: Environment variable of the CUDA libraries; "0" turns TF32 off for the whole process.
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def chain_of(provider: Provider, options: SessionOptions) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session in their order, each with its options.

    Parameters
    ----------
    provider : {"cpu", "cuda", "tensorrt"}
    options : SessionOptions
        Uses `device`, `stock` and `max_device_bytes`.
    """
    cpu: tuple[str, dict[str, str]] = (NAMES["cpu"], {})
    if provider == "cpu":
        return [cpu]
    device = {"device_id": str(options.device)}
    cuda = (NAMES["cuda"], device | ({} if options.stock else _repeatable(options)))
    if provider == "cuda":
        return [cuda, cpu]
    tensorrt = {} if options.stock else {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
    return [(NAMES["tensorrt"], device | tensorrt), cuda, cpu]


def _repeatable(options: SessionOptions) -> dict[str, str]:
    """Return the CUDA options under which runs differ only by what was perturbed."""
    chosen = {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "DEFAULT",
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",  # powers of two would take up to twice the memory
    }
    if options.max_device_bytes is not None:
        chosen["gpu_mem_limit"] = str(options.max_device_bytes)
    return chosen


def rounds_to_tf32(provider: Provider, environment: Mapping[str, str] | None = None) -> bool:
    """Return whether scoring on this provider would round matrix products to TF32; only TensorRT can."""
    given = os.environ if environment is None else environment
    return provider == "tensorrt" and given.get(TF32_OVERRIDE) != "0"

"""The driver and the CUDA libraries of this machine: a new one may compute other bits. Never imports onnxruntime."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from tqs_onnx.rollout.provider_options import TF32_OVERRIDE

_PROC = Path("/proc/driver/nvidia")
_PACKAGES = re.compile(
    r"nvidia-(?:cublas|cudnn|cufft|curand|cuda-runtime|cuda-nvrtc)(?:-cu\d+)?|tensorrt(?:-cu\d+)?"
)
_CUDNN = ("libcudnn.so.9", "libcudnn.so.8", "cudnn64_9.dll")


def card_names(proc: Path = _PROC) -> str:
    """Return the models of the GPUs, each once; `gpu` if the driver does not say."""
    cards = sorted(proc.glob("gpus/*/information"))
    found = [re.search(r"Model:\s*(.+)", card.read_text(encoding="utf-8")) for card in cards]
    return " + ".join(sorted({m.group(1).strip() for m in found if m})) or "gpu"


@cache
def gpu_versions(proc: Path = _PROC) -> dict[str, str]:
    """Return the versions of the driver, of cuDNN as it is loaded, and of the installed CUDA packages.

    What this machine does not have is left out. TF32_OVERRIDE, which the libraries read, is among them if it is set.
    """
    found: dict[str, str] = {}
    driver = proc / "version"
    if driver.is_file():
        said = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", driver.read_text(encoding="utf-8"))
        if said:
            found["driver"] = said.group(1)
    if cudnn := _cudnn_version():
        found["cudnn"] = cudnn
    for package in distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        if _PACKAGES.fullmatch(name):
            found[name] = package.version
    if TF32_OVERRIDE in os.environ:
        found[TF32_OVERRIDE] = os.environ[TF32_OVERRIDE]
    return dict(sorted(found.items()))


def _cudnn_version() -> str:
    """Return the version that the library itself states, e.g. ``91002``; empty if it is not to be found."""
    for name in _CUDNN:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudnnGetVersion.restype = ctypes.c_size_t
        return str(library.cudnnGetVersion())
    return ""

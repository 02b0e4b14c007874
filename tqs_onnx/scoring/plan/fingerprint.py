"""Compute the job: one digest of everything that a measurement depends on.

It includes the model file, the rollout, the contexts, σ's units, the horizons, chunking, early stop, how weights are
injected and which of them share a session, the versions of the runtime and of NumPy (which draws and rounds), the
provider, and the processor's instruction sets; on a GPU its model, its driver and the CUDA libraries instead.

It does not include the output path and the number of threads. The runtime's CPU kernels split a product over rows and
columns, never within a sum, so the number of threads does not change a bit of a result; a test verifies this. Probe,
bits, draw and seed belong to the single rollout (see `perturbation.Rollout.key`): more draws reuse the existing ones.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from tqs_onnx.rollout.gpu import card_names, gpu_versions
from tqs_onnx.rollout.session import runtime_version

_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
#: Increase this number when the way something is measured changes.
_MEASURING = 4


@cache
def instruction_set(provider: str) -> str:
    """Return the processor's instruction sets that decide which kernels run, or the name of the GPU."""
    if provider != "cpu":
        return card_names()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    flags = set(line.group(1).split()) if line else set[str]()
    return " ".join([platform.machine(), *(s for s in _SETS if s in flags)])


def job_facts(
    *, provider: str, source_sha256: str, rollout_sha256: str, contexts_sha256: str, **chosen: object
) -> dict[str, object]:
    """Return everything that a job's measurements depend on, JSON-ready; `chosen`: choices of the sweep itself."""
    return {
        "measuring": _MEASURING,
        "source": source_sha256,
        "rollout": rollout_sha256,
        "contexts": contexts_sha256,
        "provider": provider,
        "runtime": runtime_version(),
        "numpy": np.__version__,
        "instructions": instruction_set(provider),
        **({} if provider == "cpu" else {"gpu": gpu_versions()}),
        **chosen,
    }


def job_id(facts: Mapping[str, object]) -> str:
    """Return the digest of a job's facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

"""Load a model in a child process first: one that crashes the runtime, or is folded into gigabytes, costs one line.

The child imports only the runtime and opens the model, so that constants are folded there first. It may take memory in
proportion to the file. It exits 0 whether or not loading raises; only a crash or a lack of memory is reported here. The
caller sees any other error when it loads the model itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tqs_onnx.rollout.guard import memory_bytes
from tqs_onnx.rollout.options import Provider, SessionOptions
from tqs_onnx.rollout.provider_options import chain_of
from tqs_passes.errors import InputError
from tqs_passes.files.model import files_of

#: Memory that loading may take: for any file, and for each of its bytes (1-bit weights are folded into 32 bits, and
#: held twice meanwhile).
_ANY_BYTES = 2 << 30
_BYTES_PER_BYTE = 96
#: The same under `max_memory`, which is what a job may hold.
_LEAST_BYTES = 256 << 20
_LEAST_PER_BYTE = 4
_OUT_OF_MEMORY = 77
_SCRIPT = f"""
import json
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 1
onnxruntime.set_default_logger_severity(4)
path, allowed, providers = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
def load(chain):
    try:
        onnxruntime.InferenceSession(path, options, providers=chain)
    except MemoryError:
        sys.exit({_OUT_OF_MEMORY})
    except Exception as error:
        if "bad_alloc" in str(error) or "allocate memory" in str(error) or "bad allocation" in str(error):
            sys.exit({_OUT_OF_MEMORY})
def limited(chain):
    import resource
    pages = int(open("/proc/self/statm").read().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + allowed
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    load(chain)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
linux, on_device = sys.platform == "linux", len(providers) > 1
if linux:
    limited(providers[-1:])  # constants are folded on the CPU
if on_device and hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()  # as for every session: without them CUDA does not load, and the CPU is tried again
if on_device or not linux:
    load(providers)  # without a limit: CUDA reserves more addresses than there is memory
"""


def loads_in_child(
    path: Path, provider: Provider = "cpu", max_memory: int | None = None, device: int = 0
) -> str | None:
    """Load a model in a child process; return None if the runtime survives, else how it ended.

    Parameters
    ----------
    path : Path
        The `.onnx` file; its external data is found beside it.
    provider : str
    max_memory : int or None
        Bytes that the job may hold.
    device : int
        Number of the GPU.
    """
    # Building a TensorRT engine twice would take minutes.
    tried: Provider = "cuda" if provider == "tensorrt" else provider
    chain = json.dumps(chain_of(tried, SessionOptions(device=device, stock=True)))
    allowed = allowed_bytes(path, max_memory)
    command = [sys.executable, "-c", _SCRIPT, str(path.resolve()), str(allowed), chain]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode == 0:
        return None
    if done.returncode == _OUT_OF_MEMORY:
        return f"it takes more than {allowed >> 20} MiB of memory to load"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return f"exit code {done.returncode}"


def allowed_bytes(path: Path, max_memory: int | None = None) -> int:
    """Return the memory that loading a file may take."""
    n_bytes = sum(file.stat().st_size for file in files_of(path) if file.is_file())
    allowed = max(_ANY_BYTES, _BYTES_PER_BYTE * n_bytes)
    if max_memory is not None:
        allowed = min(allowed, max(max_memory, _LEAST_BYTES + _LEAST_PER_BYTE * n_bytes))
    return min(allowed, memory_bytes() or allowed)


def require_loadable(
    path: Path, provider: Provider = "cpu", max_memory: int | None = None, device: int = 0
) -> None:
    """Refuse a model that crashes the runtime, or takes memory out of proportion.

    Raises
    ------
    InputError
        The runtime crashes or runs out of memory while it loads the model.
    """
    death = loads_in_child(path, provider, max_memory, device)
    if death is not None:
        raise InputError(
            f"the model crashes the runtime ({death})",
            where=str(path),
            todo="Export the model again, or with another opset",
        )

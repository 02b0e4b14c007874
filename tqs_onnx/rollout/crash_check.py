"""Load a model in a child process first: a file that crashes the runtime then costs one line, not the command.

The child imports only the runtime and opens the model. It exits 0 whether or not loading raises; only a crash is
reported here. The caller sees any other error when it loads the model itself.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tqs_onnx.rollout.options import Provider
from tqs_passes.errors import InputError

_SCRIPT = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 1
onnxruntime.set_default_logger_severity(4)
try:
    onnxruntime.InferenceSession(sys.argv[1], options, providers=sys.argv[2:])
except Exception:
    pass
"""
_PROVIDERS: dict[Provider, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": [
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ],  # building an engine twice would take minutes
}


def loads_in_child(path: Path, provider: Provider = "cpu") -> str | None:
    """Load a model in a child process; return None if the runtime survives, else how it ended.

    Parameters
    ----------
    path : Path
        The `.onnx` file; its external data is found beside it.
    provider : str
    """
    command = [sys.executable, "-c", _SCRIPT, str(path.resolve()), *_PROVIDERS[provider]]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return f"exit code {done.returncode}"


def require_loadable(path: Path, provider: Provider = "cpu") -> None:
    """Refuse a model that crashes the runtime.

    Raises
    ------
    InputError
        The runtime crashes while it loads the model.
    """
    death = loads_in_child(path, provider)
    if death is not None:
        raise InputError(
            f"the model crashes the runtime ({death})",
            where=str(path),
            todo="Export the model again, or with another opset",
        )

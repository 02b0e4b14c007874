"""Measures the peak memory of `tqs score`: against the number of steps, and on a big model with external data.

Two tables, each row a child process of its own:

- a model with little weights and a big state (8.4 MB a context and step) at more and more steps, with and without
  `--max-memory`: with it, peak memory does not grow with the steps, because the nominal rollout lies in a file;
- a chain of 4096 x 4096 matrices of `--mb` megabytes at `--steps` steps, beside the estimate of `--dry-run`.

    python tools/bench_memory.py --state-steps 10,40,160 --max-memory 300 --mb 1100 --out tools/memory.md
    python tools/bench_memory.py --state-steps none --mb 1100 --steps 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from bench_emit import WIDTH, write_model
from onnx import numpy_helper, parser
from serving import processor

from tqs_onnx.rollout.session import runtime_version

SPEC = """version = 1
[rollout]
steps = {steps}
batch_axis = 0
[[feedback]]
output = "{output}"
input = "x"
mode = "replace"
[trajectory]
outputs = ["{output}"]
"""
#: Height and width of the big state, of 8 channels.
SIDE = 512


def peak_of(command: list[str]) -> tuple[float, float, str]:
    """Run a command to its end; return its wall seconds, peak resident bytes, and what it printed."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, printed


def state_model(path: Path) -> None:
    """Write x' = tanh(conv(x)) on a big grid: two small weights."""
    graph = f"""(float[b, 8, {SIDE}, {SIDE}] x) => (float[b, 8, {SIDE}, {SIDE}] y)
      {{ p = Conv(x, w, c)  y = Tanh(p) }}"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((8, 8, 1, 1)) / 8**0.5).astype(np.float32)
    proto.graph.initializer.extend(
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.zeros(8, np.float32), "c")]
    )
    onnx.save(proto, path)


def scored(
    folder: Path, model: Path, output: str, state: np.ndarray, steps: int, *more: str
) -> tuple[float, float, float]:
    """Score a model in a child process; return wall seconds, peak bytes, and the bytes that `--dry-run` estimates."""
    (folder / "rollout.toml").write_text(SPEC.format(output=output, steps=steps), encoding="utf-8")
    np.savez(folder / "contexts.npz", x=state)
    command = [
        *(
            sys.executable,
            "-m",
            "tqs_onnx.cli.main",
            "score",
            str(model),
            "--providers",
            "cpu",
            "--threads",
            "1",
        ),
        *("--rollout", str(folder / "rollout.toml"), "--contexts", str(folder / "contexts.npz")),
        *("--response-bits", "none", "--out", str(folder / "run"), "--force", "--json", *more),
    ]
    _, _, told = peak_of([*command, "--dry-run"])
    (folder / "run" / "sweep.sqlite").unlink(missing_ok=True)
    wall_s, peak, _ = peak_of(command)
    return wall_s, peak, float(json.loads(told)["probes"][0]["memory_bytes"])


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--state-steps", default="10,40,160", help="Steps of the first table, or none.")
    arguments.add_argument(
        "--max-memory", type=int, default=150, help="Megabytes allowed in the first table."
    )
    arguments.add_argument(
        "--mb", type=int, default=1100, help="Megabytes of float32 weights; 0: no second table."
    )
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--contexts", type=int, default=4)
    arguments.add_argument(
        "--blocks", help="Score the big model in blocks, e.g. stored:4, which takes less time."
    )
    arguments.add_argument("--out", type=Path, help="Write the tables here too.")
    given = arguments.parse_args()
    _, empty, _ = peak_of([sys.executable, "-c", "import tqs_onnx.cli.score"])
    lines = [
        "# Peak memory of `tqs score` against the estimate of `--dry-run`",
        "",
        f"Made with onnxruntime {runtime_version()} and NumPy {np.__version__} on {processor()}, one thread, by",
        "",
        f"    {asked(given)}",
        "",
        "Estimates are of what is taken beyond a process that has only loaded its libraries, "
        f"{empty / 1e6:.0f} MB here; so is *beyond*,",
        "the peak less that.",
    ]
    print("\n".join(lines), flush=True)

    def say(*more: str) -> None:
        lines.extend(more)
        print("\n".join(more), flush=True)
        if given.out:
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        if given.state_steps != "none":
            against_steps(
                Path(name), list(map(int, given.state_steps.split(","))), given.max_memory, empty, say
            )
        if given.mb:
            big_model(Path(name), given, empty, say)


def asked(given: argparse.Namespace) -> str:
    """Return the command of this run."""
    named = (("--state-steps", given.state_steps), ("--max-memory", given.max_memory), ("--mb", given.mb))
    named = (*named, ("--steps", given.steps), ("--contexts", given.contexts), ("--blocks", given.blocks))
    chosen = " ".join(f"{flag} {value}" for flag, value in named if value is not None)
    return f"python tools/bench_memory.py {chosen}" + (f" --out {given.out}" if given.out else "")


def against_steps(
    folder: Path, counts: list[int], most_mb: int, empty: float, say: Callable[..., None]
) -> None:
    """Measure the model with a big state at each number of steps, without and with a bound."""
    state_model(folder / "state.onnx")
    state = np.random.default_rng(0).standard_normal((2, 8, SIDE, SIDE)).astype(np.float32)
    say(
        "",
        f"## Against the number of steps: two contexts of {state.nbytes / 2e6:.1f} MB, two small weights",
        "",
        f"Bounded: `--max-memory {most_mb}`, so that the nominal rollout lies in a file.",
        "",
        "| steps | nominal rollout MB | peak MB | beyond MB | estimate MB | bounded: peak | beyond | estimate |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    )
    for steps in counts:
        _, free, free_told = scored(folder, folder / "state.onnx", "y", state, steps)
        bound = ("--max-memory", str(most_mb))
        _, least, told = scored(folder, folder / "state.onnx", "y", state, steps, *bound)
        cells = (steps * state.nbytes, free, free - empty, free_told, least, least - empty, told)
        say(f"| {steps} | " + " | ".join(f"{cell / 1e6:.0f}" for cell in cells) + " |")


def big_model(folder: Path, given: argparse.Namespace, empty: float, say: Callable[..., None]) -> None:
    """Measure a chain of big matrices whose weights lie in a file beside the model."""
    n_layers = max(1, given.mb * 10**6 // (4 * WIDTH * WIDTH))
    model = write_model(folder, n_layers)
    state = np.random.default_rng(0).standard_normal((given.contexts, WIDTH)).astype(np.float32)
    weights = (folder / "m.onnx.data").stat().st_size
    blocks = ("--blocks", given.blocks) if given.blocks else ()
    wall_s, peak, told = scored(folder, model, f"h{n_layers - 1}", state, given.steps, *blocks)
    beyond = peak - empty
    say(
        "",
        f"## {weights / 1e6:.0f} MB of weights in {n_layers} matrices, {given.steps} steps, {given.contexts} contexts",
        "",
        "| weights MB | peak MB | beyond MB | estimate MB | estimate / beyond | peak / weights | wall s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {weights / 1e6:.0f} | {peak / 1e6:.0f} | {beyond / 1e6:.0f} | {told / 1e6:.0f} | {told / beyond:.3f} | "
        f"{peak / weights:.2f} | {wall_s:.0f} |",
    )


if __name__ == "__main__":
    main()

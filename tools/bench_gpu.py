"""One run that says how this package does on a GPU: what it computes, where, and how long a sweep takes.

    correctness   rollouts and scores beside those of the CPU; the same bits again
    tf32          the error of products and of a rollout with the provider's own settings, and with those of scoring
    placement     nodes that the runtime leaves to the CPU, model by model
    forms         every form of stored weights for the commonest readers (tools/measure_forms.py measures all of them)
    blocks        files whose blocks compute with float16 and bfloat16: drift and latency
    sweep         a Pangu-shaped model (276.66 M random weights) scored in 28 blocks as in the paper: as many as the
                  time allows are measured, the rest extrapolated, and all held against as many bare rollouts

`--minutes` bounds the whole run: sections that no time is left for are named. Everything goes into OUT/gpu.md and
OUT/gpu.json as soon as it is measured. Without a GPU it says so and exits with 0; the rehearsal runs everywhere::

    python tools/bench_gpu.py --out gpu
    python tools/bench_gpu.py --out gpu --only sweep --grid 721x1440 --contexts 4
    python tools/bench_gpu.py --out gpu --provider cpu --tiny

Paper: 11.5 h for Pangu-Weather on an H200, contexts and draws unstated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_sections as sections
from gpu_sections import Setting

from tqs_onnx.rollout.gpu import card_names
from tqs_onnx.rollout.session import probe_provider
from tqs_onnx.verification.manifest import versions
from tqs_passes.errors import TqsError

Section = Callable[[Setting], str]
SECTIONS: dict[str, Section] = {
    "correctness": sections.correctness,
    "tf32": sections.tf32,
    "placement": sections.placement,
    "blocks": sections.blocks,
    "sweep": sections.sweep,
    "forms": sections.forms,
}


class GpuMemory:
    """Records the peak GPU memory reported by nvidia-smi; a context manager.

    Its text is a number of MB, or a dash if nvidia-smi is not available.
    """

    def __init__(self) -> None:
        self._tool = shutil.which("nvidia-smi")
        self._most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuMemory:
        """Start recording."""
        if self._tool is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording."""
        self._ended.set()
        if self._tool is not None:
            self._thread.join()

    def __str__(self) -> str:
        """Return the recorded peak."""
        return "–" if self._tool is None else f"{self._most} MB"

    def _watch(self) -> None:
        query = [str(self._tool), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._ended.wait(0.5):
            said = subprocess.run(query, check=False, capture_output=True, text=True).stdout.split("\n")[0]
            self._most = max(self._most, int(said) if said.strip().isdecimal() else 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a section said, its seconds and its peak GPU memory; `failed`: the error that ended it."""

    said: str
    seconds: float
    memory: str
    failed: bool


def ran(section: Section, setting: Setting) -> Entry:
    """Run a section; an error of this package or of the runtime is its result."""
    start = time.monotonic()
    with GpuMemory() as memory:
        try:
            said, failed = section(setting), False
        except (TqsError, AssertionError) as error:
            said, failed = f"**failed**: {error}", True
    return Entry(said, time.monotonic() - start, str(memory), failed)


def page(entries: dict[str, Entry], skipped: list[str], provider: str) -> str:
    """Return the results as Markdown."""
    chip = card_names() if provider != "cpu" else "a CPU: a rehearsal, its figures say nothing of a GPU"
    lines = [f"# On {chip}", "", ", ".join(f"{k} {v}" for k, v in versions("cuda").items()), ""]
    for name, entry in entries.items():
        lines += [f"## {name} ({entry.seconds:.1f} s, GPU memory {entry.memory})", "", entry.said, ""]
    if skipped:
        lines += [f"No time was left for: {', '.join(skipped)}.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SECTIONS), help="Sections, separated by commas.")
    parser.add_argument("--minutes", type=float, default=5.5)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small models: a rehearsal of a few seconds.")
    parser.add_argument("--grid", default="721x1440", help="Grid of the Pangu-shaped model.")
    parser.add_argument("--contexts", type=int, default=1, help="Contexts of its sweep.")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.provider == "cuda" and (why := probe_provider("cuda")) is not None:
        print(f"no GPU here: {why}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    lat, lon = (int(n) for n in given.grid.split("x"))
    end = time.monotonic() + 60 * given.minutes
    entries: dict[str, Entry] = {}
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tqs-gpu-") as scratch:
        for name in given.only.split(","):
            if time.monotonic() > end:
                skipped.append(name)
                continue
            # Half of what is left, so that what comes after the sweep has time too.
            until = time.monotonic() + (end - time.monotonic()) / 2
            setting = Setting(
                *(given.provider, Path(scratch), given.tiny, given.threads, (lat, lon), given.contexts, until)
            )
            entries[name] = ran(SECTIONS[name], setting)
            text = page(entries, skipped, given.provider)
            (given.out / "gpu.md").write_text(text, encoding="utf-8")
            document: dict[str, Any] = {n: e.said for n, e in entries.items()}
            (given.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(text.split("\n## ")[-1], flush=True)
    if skipped:
        print(f"no time was left for {', '.join(skipped)}")
    return 1 if any(entry.failed for entry in entries.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs all stages on a full-size model on this machine: export, score, allocate, emit, verify.

Every stage is a child process that runs the command line, so wall time, CPU time and peak resident memory are its own.
A stage whose file exists is skipped, so a long run can be split; measured responses are kept as they arrive. Weights
are random (see `tqs export`): bytes, time and memory are those of the real model; drift is that of the random one.

Two trips: `energy` without data, and (`--measured`) the configuration that wins, `--objective measured --rounding qep`,
with integers chosen on contexts that were not scored on.

    python tools/full_size.py pangu --folder big
    python tools/full_size.py timesfm --folder big --exporter /path/to/python/with/timesfm
    python tools/full_size.py aurora --folder big --exporter /path/to/python/with/aurora
    python tools/full_size.py timesfm --folder big --measured --ratios 8,4,16
    python tools/full_size.py --folder big --write models/zoo/FULL_SIZE.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.contexts.context_set import thin
from tqs_onnx.verification.manifest import versions

RATIOS = (4, 8, 16)
RECORD = "full_size.json"
#: The configuration that wins; QEP's published setting, because trying six takes six times as long.
QEP = ("--rounding", "qep", "--objective", "measured", "--no-tune")
Record = dict[str, Any]


@dataclass(frozen=True)
class Trip:
    """The arguments for one model: of `tqs export` (the architecture first), of the rollouts, and of `tqs score`."""

    title: str
    export: tuple[str, ...]
    rollout: tuple[str, ...]
    score: tuple[str, ...]


TRIPS = {
    "pangu": Trip(
        "Pangu-shaped, 721 × 24, 13 levels",
        ("pangu", "--grid", "721x24", "--contexts", "2"),
        ("--steps", "2", "--max-contexts", "1"),
        ("--blocks", "nodes:8", "--probe-bits", "3", "--response-bits", "none"),
    ),
    "timesfm": Trip(
        "TimesFM-2.5",
        ("timesfm", "--contexts", "4"),
        ("--steps", "2", "--max-contexts", "2"),
        ("--blocks", r"pattern:^(stacked_xf\.\d+)\.\w*?(attn|ff)|^([a-z_]+)\."),
    ),
    "aurora": Trip(
        "Aurora-small, 32 × 64, 13 levels",
        ("aurora", "--contexts", "2"),
        ("--steps", "2", "--max-contexts", "1"),
        ("--blocks", r"pattern:^(backbone\.\w+_layers\.\d+\.blocks\.\d+|[a-z]+\.[a-z_]+)"),
    ),
    "tiny": Trip(
        "Pangu-shaped, 25 × 24, 3 levels: a rehearsal",
        (
            *(
                "pangu",
                "--grid",
                "25x24",
                "--levels",
                "3",
                "--contexts",
                "2",
                "--set",
                "dim=12",
                "--set",
                "heads=2",
            ),
            *("--set", "window=2,3,6", "--set", "depths=1,1,1,1"),
        ),
        ("--steps", "2", "--max-contexts", "1"),
        ("--blocks", "nodes:8"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=sorted(TRIPS))
    parser.add_argument("--folder", type=Path, required=True, help="Where models and runs lie.")
    parser.add_argument(
        "--exporter", default=sys.executable, help="Interpreter with the packages `tqs export` needs."
    )
    parser.add_argument("--measured", action="store_true", help="The trip with --rounding qep.")
    parser.add_argument("--ratios", default="4,8,16", help="Weight compressions, in this order.")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--write", type=Path, help="Write the page: sections of models that the folder lacks stay."
    )
    options = parser.parse_args()
    if options.name:
        ratios = tuple(int(text) for text in options.ratios.split(","))
        folder = options.folder / options.name
        travel(
            options.name, folder, options.exporter, ratios, measured=options.measured, threads=options.threads
        )
    found = {name: read(options.folder / name) for name in TRIPS if (options.folder / name / RECORD).exists()}
    before = options.write.read_text(encoding="utf-8") if options.write and options.write.exists() else ""
    text = page(found, before)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    print(text)


def read(folder: Path) -> Record:
    file = folder / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def travel(
    name: str, folder: Path, exporter: str, ratios: tuple[int, ...], *, measured: bool, threads: int
) -> None:
    """Run the stages whose files are missing; write the record after each."""
    trip, record = TRIPS[name], read(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, run = folder / "model.onnx", folder / ("qep" if measured else "run")
    kind = "qep " if measured else ""
    rolled = ["--rollout", folder / "rollout.toml", "--contexts", folder / "contexts.npz", *trip.rollout]
    rolled += ["--threads", threads] if threads else []

    def stage(key: str, made: Path, *arguments: object, python: str = sys.executable) -> None:
        if made.exists() and (key in record or key == "export"):  # a model may come from elsewhere
            return
        record[key] = ran([str(a) for a in arguments], python, folder, threads)
        write(record, folder)

    stage("export", model, "export", *trip.export, "--out", folder, "--force", python=exporter)
    record["model"], record["machine"] = described(model), machine()
    # The responses at other widths are measured for the choices themselves.
    score = [*trip.score, "--response-bits", "none"] if measured else trip.score
    stage(
        f"score {kind}".strip(), run / "scores.json",
        "score", model, *rolled, *score, "--out", run, "--force", "--json",
    )  # fmt: skip
    scores = ["--scores", run / "scores.json"]
    data: list[object] = []
    if measured:
        held_out(folder / "contexts.npz", int(trip.rollout[-1]), folder / "calibration.npz")
        data = [*rolled, "--calibration", folder / "calibration.npz", *QEP]
    for ratio in ratios:
        at = run / f"w{ratio}"
        at.mkdir(exist_ok=True)
        plan, out, manifest = at / "plan.json", at / "model.onnx", at / "manifest.json"
        which = f"{kind}{ratio}"
        target = ["--weight-compression", ratio]
        stage(
            f"allocate {which}", plan,
            "allocate", model, *scores, *data, *target, "--out", plan, "--force", "--json",
        )  # fmt: skip
        stage(f"emit {which}", out, "emit", model, "--plan", plan, "--out", out, "--force", "--json")
        stage(
            f"verify {which}", manifest, "verify", out, "--source", model, "--plan", plan, *scores, *rolled,
            "--eval-contexts", folder / "eval.npz", "--max-eval-contexts", 1, "--manifest", manifest, "--force",
            "--json",
        )  # fmt: skip
        record[f"facts {which}"] = facts(manifest, plan)
        write(record, folder)


def described(model: Path) -> Record:
    """Return the size of a model."""
    source = open_source(model)
    return {
        "bytes": source.facts.n_bytes,
        "tensors": len(source.survey.weights),
        "weights": sum(w.n_values for w in source.survey.weights),
    }


def held_out(contexts: Path, n_scored: int, out: Path) -> None:
    """Write the contexts that are not scored on.

    Integers are chosen on them, so that all scored ones can judge a plan after one rounding. If the sets shared a
    context, every plan would be rounded on each half of the scored ones.
    """
    with np.load(contexts) as arrays:
        n = len(arrays[arrays.files[0]])
        rest = sorted(set(range(n)) - set(thin(n, n_scored)))
        np.savez(out, **{name: arrays[name][rest] for name in arrays.files})


def write(record: Record, folder: Path) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ran(arguments: list[str], python: str, folder: Path, threads: int) -> Record:
    """Run `tqs` with these arguments in a child process; exit if it fails."""
    start = time.perf_counter()
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    child = subprocess.Popen(
        [python, "-m", "tqs_onnx.cli.main", *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    found: Record = {
        "command": "tqs " + " ".join(arguments).replace(f"{folder}/", "").replace(str(folder), "."),
        "exit_code": child.returncode,
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
    }
    print(json.dumps(found, ensure_ascii=False), file=sys.stderr)
    if child.returncode:
        sys.exit(f"{found['command']} ended with {child.returncode}\n{printed}")
    return found


def facts(manifest: Path, plan: Path) -> Record:
    """Return the results of verification, and the number of plans that were compared."""
    v = json.loads(manifest.read_text(encoding="utf-8"))["verification"]
    return {
        "weight_compression": v["weight_compression"],
        "compression": v["compression"],
        "planned_bytes": v["planned_bytes"],
        "bytes": v["bytes_out"],
        "predicted_drift": v["predicted_drift"],
        "compared": len(json.loads(plan.read_text(encoding="utf-8")).get("tried", ())),
        "drift": v["drift"]["total"],
        "runtime_gap": v["runtime_gap"],
        "n_decoded": v["n_decoded"],
    }


def machine() -> Record:
    """Return the properties of the machine that the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        **versions(),
    }


HEAD = """# Full size on two CPU cores

The three models of the paper at full size, with random weights (bytes, time and memory are those of the real
models; drift is that of the random ones, and says nothing of theirs). Written by `tools/full_size.py`:
every row is a child process of its own; times are wall and CPU seconds, memory is peak resident megabytes.
Other jobs ran on the machine: CPU seconds are the steadier figure. A section was made by the version of its date.
A stage that was broken off goes on with what it kept, and its row holds the last run: Pangu's allocation by data had
measured most of its responses before.
"""
#: The two trips: prefix of their stages, and what their titles add to the model's.
KINDS = (("", ""), ("qep ", ", integers by data"))


def page(found: dict[str, Record], kept: str = "") -> str:
    """Return the page as Markdown: a section for each model and trip, and those of an older page that these lack."""
    sections = _sections(kept)
    for name, record in found.items():
        for kind, title in KINDS:
            done = [c for c in RATIOS if f"facts {kind}{c}" in record]
            if done and "model" in record:
                heading = f"## {TRIPS[name].title}{title}: "
                sections[heading] = heading + _section(record, kind, done)
    return "\n".join([HEAD, *sections.values()])


def _sections(text: str) -> dict[str, str]:
    """Return the sections of a page, by the part of their heading before the colon."""
    parts = ["## " + part for part in text.split("\n## ")[1:]]
    return {part[: part.index(": ") + 2]: part.rstrip("\n") + "\n" for part in parts}


def _section(record: Record, kind: str, done: list[int]) -> str:
    machine, model = record["machine"], record["model"]
    shown = ("python", "onnxruntime-gpu", "onnx", "numpy")
    lines = [
        f"{model['weights'] / 1e6:.2f} M weights in {model['tensors']} tensors, {model['bytes']:,} bytes",
        "",
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        + ", ".join(f"{k} {v}" for k, v in machine.items() if k in shown),
        "",
        "| stage | wall s | CPU s | peak MB |",
        "|---|---:|---:|---:|",
    ]
    stages = ["export", f"score {kind}".strip()]
    stages += [f"{stage} {kind}{c}" for c in done for stage in ("allocate", "emit", "verify")]
    for key in stages:
        if key in record:
            s = record[key]
            name = key.replace(kind, "") if kind else key
            lines.append(f"| {name.strip()} | {s['wall_s']:.0f} | {s['cpu_s']:.0f} | {s['peak_mb']:,.0f} |")
    lines += [
        "",
        "| weights asked | weights | file | planned bytes | bytes | off | compared | predicted | drift | runtime |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in done:
        f = record[f"facts {kind}{c}"]
        off = 100 * (f["bytes"] / f["planned_bytes"] - 1)
        predicted = "–" if f["predicted_drift"] is None else f"{f['predicted_drift']:.3g}"
        lines.append(
            f"| {c} | {f['weight_compression']:.3f} | {f['compression']:.3f} | {f['planned_bytes']:,} | "
            f"{f['bytes']:,} | {off:+.4f} % | {f.get('compared') or 1} | {predicted} | {f['drift']:.3g} | "
            f"{f['runtime_gap']:.2g} |"
        )
    commands = [record[k]["command"] for k in (*stages[:2], *(stages[-3:])) if k in record]
    return "\n".join([*lines, "", "```", *commands, "```", ""])


if __name__ == "__main__":
    main()

"""Command lines of every command that writes files, on the smallest case; `--out` is left to the caller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.test_fuzz import options_of
from tests.rollouts import Case
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.source import open_source

_RUN = ("--providers", "cpu", "--response-bits", "none")


def _planned(case: Case, folder: Path) -> list[str]:
    plan = folder / "plan.json"
    plan.write_text(options_of(open_source(case.model))[0].to_json())
    return ["--plan", str(plan)]


def _scored(case: Case, folder: Path) -> list[str]:
    _done(["score", str(case.model), *case.arguments()[:4], *_RUN, "--out", str(folder / "scored")])
    return ["--scores", str(folder / "scored" / "scores.json")]


def _quantized(case: Case, folder: Path) -> list[str]:
    run = folder / "run"
    _done(["quantize", str(case.model), *case.arguments(), *_RUN, "--compression", "1.5", "--out", str(run)])
    return [str(run)]


def _built(case: Case, folder: Path) -> list[str]:
    text = 'version = 1\nmodel = "m.onnx"\n[data]\nrollout = "rollout.toml"\ncontexts = "contexts.npz"\n'
    text += 'eval_contexts = "eval.npz"\n[plan]\ncompression = 1.5\n[run]\nthreads = 1\n'
    (case.model.parent / "tqs.toml").write_text(text)
    return [str(case.model.parent / "tqs.toml")]


def _done(arguments: list[str]) -> None:
    if main(arguments):
        raise RuntimeError(" ".join(arguments))


#: What follows the name of a command, without `--out`.
COMMANDS: dict[str, Callable[[Case, Path], list[str]]] = {
    "package": lambda case, _: [str(case.model), "--format", "triton"],
    "emit": lambda case, folder: [str(case.model), *_planned(case, folder)],
    "score": lambda case, _: [str(case.model), *case.arguments()[:4], *_RUN, "--threads", "1"],
    "allocate": lambda case, folder: [
        *(str(case.model), *_scored(case, folder), *case.arguments()[:4]),
        *("--compression", "1.5", "--rounding", "gptq"),
    ],
    "quantize": lambda case, _: [str(case.model), *case.arguments(), *_RUN, "--compression", "1.5"],
    "baseline": lambda case, _: [str(case.model), *case.arguments(), "--method", "gptq", "--bits", "4"],
    "sweep": lambda case, folder: [
        *(str(case.model), *_scored(case, folder), *case.arguments()),
        "--compressions",
        "1.2,1.5",
    ],
    "build": _built,
    "report": _quantized,
    "analyse": _quantized,
}
#: The file that a command writes, into a folder that is there; the others make a folder.
FILES = {"emit": "o.onnx", "allocate": "plan.json", "report": "page.html"}
#: Commands whose output appears at once.
WHOLE = ("package", "emit")


def command_of(name: str, case: Case, folder: Path) -> list[str]:
    """Return the words of a command on a case; what it reads besides is written into `folder`."""
    return [name, *COMMANDS[name](case, folder)]

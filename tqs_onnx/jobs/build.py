"""A build: all stages declared in one file; each step runs only when something it depends on has changed.

`tqs.toml` ::

    version = 1
    model = "model.onnx"                # paths are relative to this file
    out = "run"
    [data]                              # options of score and verify
    rollout = "rollout.toml"
    contexts = "contexts.npz"
    eval_contexts = "eval.npz"
    [score]                             # options of `tqs score`, by their long names
    probe = "quant"
    [plan]                              # options of `tqs allocate`
    compression = 8
    profile = "exact"
    rounding = "qep"                    # its integers go to codes.npz
    [gates]                             # options of `tqs verify`
    max_drift = 0.1
    gate = ["drift:p95<=0.2"]
    [run]                               # providers, batch, threads, max_memory …
    threads = 1
    [[package]]                         # options of `tqs package`, as often as wanted
    format = "triton"

A step's key is the SHA-256 of its options, of the digests of the files it reads, and of the versions of everything that
affects results. `build.json` in the run directory holds the keys. A step is skipped when its key is unchanged and every
file it wrote still has the same digest. A skipped `verify` keeps its exit code.
Before a step runs, the files it wrote earlier are removed; when a step fails, the files of the later steps are removed
too. The run directory therefore never mixes files of different declarations.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tqs_onnx.inputs.data import MADE, DataOptions
from tqs_onnx.jobs.options import QuantizeOptions, job_settings, settings_of
from tqs_onnx.jobs.run_directory import ROLLOUT_NAME, created, resolved
from tqs_onnx.jobs.single import (
    AllocateJob,
    ScoreJob,
    VerifyJob,
    allocate_files,
    emit_files,
    score_files,
    verify_files,
)
from tqs_onnx.packaging.package import PackageOptions, package
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.assign import DATA_AWARE
from tqs_onnx.rounding.codes_file import CODES_NAME
from tqs_onnx.scoring.score import Progress
from tqs_onnx.verification.traces import TRACES_NAME
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts, sha256_of_file
from tqs_passes.files.temporary import claimed
from tqs_passes.files.text import read_text

#: Value of an option: a switch, a number, a text, or a list of these.
OptionValue = bool | int | float | str | list[str] | list[int] | list[float]
Options = dict[str, OptionValue]
STATE_NAME = "build.json"
_LOG = logging.getLogger(__name__)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Table):
    """The `[data]` table; its keys are flags of `tqs quantize`."""

    rollout: str | None = None
    contexts: str = MADE
    eval_contexts: str | None = None
    calibration: str | None = None
    steps: int | None = Field(default=None, ge=1)
    max_contexts: int | None = Field(default=None, ge=1)
    max_eval_contexts: int | None = Field(default=None, ge=1)
    input_scale: tuple[str, ...] = ()
    made_beside: int = Field(default=DataOptions().made_beside, ge=0)


class BuildFile(_Table):
    """The file `tqs.toml` (see module docstring)."""

    version: Literal[1]
    model: str
    out: str = "run"
    name: str | None = Field(default=None, pattern=r"^[^/\\\x00]+\.onnx$")
    data: DataSection
    score: Options = Field(default_factory=dict)
    plan: Options
    gates: Options = Field(default_factory=dict)
    run: Options = Field(default_factory=dict)
    package: tuple[Options, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """A build file with its paths resolved and its options parsed.

    Parameters
    ----------
    model, out, emitted : Path
        The model, the run directory, and the file to write in it.
    data : DataOptions
    options : QuantizeOptions
    packages : tuple of PackageOptions
    progress : callable, optional
        See `score`.
    """

    model: Path
    out: Path
    emitted: Path
    data: DataOptions
    options: QuantizeOptions
    packages: tuple[PackageOptions, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of a build.

    Parameters
    ----------
    name : str
        Its name in the state: the stage, numbered if there are several.
    run : callable
        Runs it and returns its exit code; raises what the stage raises.
    options : dict of str to value
        Options that affect its result.
    reads, writes : tuple of Path
        Files or folders that affect its result, and those that it creates. An `.onnx` file stands for its external data
        as well.
    """

    name: str
    run: Callable[[], int]
    options: Mapping[str, object]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]


class Done(_Table):
    """The record of a finished step in the state."""

    key: str
    exit_code: int
    written: dict[str, str]


class State(_Table):
    """The file `build.json`."""

    version: Literal[1] = 1
    steps: dict[str, Done] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a build.

    Parameters
    ----------
    ran, skipped : tuple of str
        Names of steps, in order.
    exit_code : int
        0, or the exit code of the first step whose gates failed.
    files : dict of str to str
        Digest of every file written, by path relative to the run directory.
    """

    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    exit_code: int
    files: dict[str, str] = field(default_factory=dict[str, str])


def read_build(path: Path) -> BuildFile:
    """Read `tqs.toml`.

    Raises
    ------
    InputError
        The file is missing, is not TOML, or has unknown, missing or ill-typed keys.
    """
    try:
        document = tomllib.loads(read_text(path))
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            where=str(path),
            todo="Give a build file, like the example in docs/build.md",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, tables in tables
        raise InputError(f"is not TOML: {error}", where=str(path)) from error
    try:
        return BuildFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"{key}: {first['msg']}", where=str(path), todo="See the example in docs/build.md"
        ) from error


def steps_of(trip: Declared) -> tuple[Step, ...]:
    """Return the steps of a build in order.

    Raises
    ------
    InputError
        A path cannot be resolved.
    """
    out, data = trip.out, trip.data
    for path in (out, trip.model, *data.files.values()):
        resolved(path)
    files = data.read_files
    for path in files.values():
        resolved(path)
    scores, plan, manifest = out / "scores.json", out / "plan.json", out / "manifest.json"
    options = trip.options
    codes = (out / CODES_NAME,) if options.refine.rounding.method in DATA_AWARE else ()
    aimed = options.budget.target is not None
    fed = [path for role, path in files.items() if aimed or role != "evaluation"]
    seen = [*files.values()]
    settings = job_settings("quantize", trip.model, data, out, options)
    chosen = settings["options"]
    run = chosen["run"] | {"provider": resolve_provider(options.run.provider)}
    limits = {"run": run, "steps": data.steps, "max_contexts": data.max_contexts}
    made = {role: text for role, text in data.made.items() if aimed or role != "evaluation"}
    if made:
        limits["made"] = [made, settings["data"].get("input_scale", [])]
    scored = limits | {"score": settings_of(options.scoring), "roles": chosen["roles"]}
    if aimed:
        limits["max_eval_contexts"] = data.max_eval_contexts
    planned = limits | {
        k: v for k, v in chosen.items() if k not in ("score", "roles", "gates", "timing", "run")
    }
    if data.made_beside:
        planned["made_beside"] = [data.made_beside, settings["data"].get("input_scale", [])]
    judged = limits | {"settings": settings}  # the manifest that it writes holds all of them

    def score() -> int:
        score_files(
            ScoreJob(trip.model, data, out, (options.scoring,), options.run, options.roles, force=True),
            trip.progress,
            budgeted=options,
        )
        return 0

    def allocate() -> int:
        allocate_files(AllocateJob(trip.model, scores, plan, options, data, force=True))
        return 0

    def emit() -> int:
        emit_files(trip.model, plan, trip.emitted, force=True)
        return 0

    def verify() -> int:
        files = (trip.emitted, trip.model, plan, scores)
        job = VerifyJob(
            *(*files, data, manifest, options.gates, options.run, settings),
            timing=options.timing,
            save_traces=options.save_traces,
            force=True,
        )
        gates = verify_files(job).gates
        return 0 if all(g.passed for g in gates) else GateError.exit_code

    drafted = (out / ROLLOUT_NAME,) if data.rollout is None else ()
    steps = [
        Step("score", score, scored, (trip.model, *fed), (scores, out / "scores.csv", *drafted)),
        Step("allocate", allocate, planned, (trip.model, scores, *fed), (plan, *codes)),
        Step("emit", emit, {}, (trip.model, plan, *codes), (trip.emitted,)),
        Step(
            *("verify", verify, judged),
            (trip.model, trip.emitted, plan, *codes, scores, *seen),
            (manifest, out / TRACES_NAME),
        ),
    ]
    for index, wanted in enumerate(trip.packages):
        name = f"package-{index + 1}"
        wrap = _packaging(trip.emitted, out / name, wanted)
        steps.append(Step(name, wrap, settings_of(wanted), (trip.emitted,), (out / name,)))
    return tuple(steps)


def _packaging(emitted: Path, target: Path, wanted: PackageOptions) -> Callable[[], int]:
    def wrap() -> int:
        package(emitted, target, wanted, force=True)
        return 0

    return wrap


def run_build(
    steps: Sequence[Step],
    folder: Path,
    out: Path,
    versions: Mapping[str, str],
    *,
    anew: bool = False,
) -> Report:
    """Run the steps whose inputs changed; stop after the first that fails.

    Parameters
    ----------
    steps : sequence of Step
    folder : Path
        Folder of the build file. Keys use paths relative to it, so a project that moves as a whole is unchanged.
    out : Path
        Run directory; created if missing.
    versions : mapping of str to str
        Versions of everything that affects results.
    anew : bool
        Run every step, changed or not.

    Raises
    ------
    InputError
        A file that a step reads is missing, or the run directory is in use or cannot be written.
    """
    with created(out), claimed(out, at=out):
        return _ran(steps, folder, out, versions, anew=anew)


def _ran(
    steps: Sequence[Step], folder: Path, out: Path, versions: Mapping[str, str], *, anew: bool
) -> Report:
    known = dict(_read_state(out / STATE_NAME).steps)
    kept: dict[str, Done] = {}
    ran: list[str] = []
    skipped: list[str] = []
    files: dict[str, str] = {}
    code = 0
    for step in steps:
        key = key_of(step, folder, versions)
        done = known.get(step.name)
        if not anew and done is not None and done.key == key and _digests(step.writes, out) == done.written:
            skipped.append(step.name)
            known.pop(step.name)
            _LOG.info("%s: unchanged", step.name)
        else:
            _LOG.info("%s: running", step.name)
            _drop(known.pop(step.name, None), out)
            failed = True
            try:
                exit_code = step.run()
                failed = exit_code != 0
            finally:
                if failed:
                    for left in known.values():
                        _drop(left, out)
                    known = {}
            done = Done(key=key, exit_code=exit_code, written=_digests(step.writes, out))
            ran.append(step.name)
        kept[step.name] = done
        files |= done.written
        write_text(out / STATE_NAME, State(steps=kept).model_dump_json(indent=2) + "\n")
        if done.exit_code:
            code = done.exit_code
            break
    return Report(tuple(ran), tuple(skipped), code, files)


def key_of(step: Step, folder: Path, versions: Mapping[str, str]) -> str:
    """Return the key of a step; the module docstring defines it.

    Raises
    ------
    InputError
        A file that the step reads is missing.
    """
    reads = [_contents(path) for path in step.reads]
    written = [path.as_posix() for path in step.writes]
    facts = [step.name, written, sorted(step.options.items()), reads, sorted(versions.items())]
    text = json.dumps(facts).replace(json.dumps(str(folder))[1:-1], ".")
    return hashlib.sha256(text.encode()).hexdigest()


def _drop(done: Done | None, out: Path) -> None:
    """Remove the files a step wrote and folders left empty; paths outside the run directory are ignored."""
    for name in done.written if done is not None else ():
        path = out / name
        if not path.resolve().is_relative_to(out.resolve()) or not path.is_file():
            continue
        path.unlink()
        for folder in path.relative_to(out).parents[:-1]:
            if any((out / folder).iterdir()):
                break
            (out / folder).rmdir()


def _contents(path: Path) -> list[list[str]]:
    """Return (name, digest) of a file, of a model with its external data, or of every file in a folder."""
    if path.suffix == ".onnx":
        return [[name, digest] for name, digest in sorted(file_facts(path).sha256.items())]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        return [[p.relative_to(path).as_posix(), sha256_of_file(p)] for p in inside]
    if path.name == CODES_NAME and not path.exists():
        return []  # no weight got integers: there is nothing to keep
    if not path.is_file():
        raise InputError("no such file", where=str(path), todo="Correct its path in the build file")
    return [[path.name, sha256_of_file(path)]]


def _digests(paths: Sequence[Path], out: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if path.is_file():
            inside += [p for p in [path.with_name(path.name + ".data")] if p.is_file()]
        found |= {p.relative_to(out).as_posix(): sha256_of_file(p) for p in inside if p.is_file()}
    return found


def _read_state(path: Path) -> State:
    """Return the state, or an empty one if it is missing or unreadable; every step then runs."""
    try:
        return State.model_validate_json(read_text(path))
    except (OSError, UnicodeDecodeError, ValidationError):
        return State()

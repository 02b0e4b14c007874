"""Draft the rollout of an opened model in a child process: trial calls of a stranger's model may crash or never end.

If the child does not answer in time, names and declared shapes decide.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter

from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.draft import names
from tqs_onnx.rollout.draft.draft import Draft, draft
from tqs_onnx.rollout.draft.text import draft_text
from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.session import open_session
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.windows_table import Windows
from tqs_passes.errors import InputError, TqsError

#: Seconds for opening a model and calling it.
_PATIENCE_S = 120.0
_SCRIPT = "import sys; from tqs_onnx.inputs.drafting import answer; answer(sys.argv[1])"
_ADAPTER: TypeAdapter[Draft] = TypeAdapter(Draft)


def drafted(source: Source) -> Draft:
    """Return the draft of a model's rollout spec, checked against the model.

    Raises
    ------
    InputError
        The model has no output of a kind that can be judged.
    """
    found = _asked(source.path, source.sha256)
    result = found if isinstance(found, Draft) else replace(untried(source), remarks=(found,))
    try:
        check_spec(result.spec, source.signature)
    except InputError as error:
        raise InputError(
            f"no rollout fits this model by itself: {error.what}",
            where=str(source.path),
            todo="Give `rollout`: `tqs inspect` prints a draft to start from",
        ) from error
    return result


def untried(source: Source) -> Draft:
    """Return a draft from names, declared shapes and metadata; the model is not called."""
    return draft(source.lifted, source.signature, source.metadata, None)


def tried(source: Source) -> Draft:
    """Return a draft with trial calls in this process."""
    session = open_session(source.path, options=SessionOptions(threads=1))
    return draft(source.lifted, source.signature, source.metadata, session)


@lru_cache(maxsize=8)
def _asked(path: Path, sha256: str) -> Draft | str:  # the digest is part of the key of the cache
    """Return the draft that a child process made, or why there is none."""
    command = [sys.executable, "-c", _SCRIPT, str(path.resolve())]
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        return f"trial calls took longer than {_PATIENCE_S:.0f} s, so names and declared shapes decide"
    if done.returncode != 0:
        code = done.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"trial calls ended with {how}, so names and declared shapes decide"
    return _ADAPTER.validate_json(done.stdout, strict=False)


def answer(path: str) -> None:
    """Print the draft of a model as JSON: the child's whole work."""
    source = open_source(Path(path))
    try:
        found = tried(source)
    except TqsError as error:
        found = replace(untried(source), remarks=(f"trial calls failed: {error.what}",))
    sys.stdout.write(_ADAPTER.dump_json(found).decode())


def with_windows(found: Draft, source: Source) -> Draft:
    """Return the draft with a `[windows]` table for contexts that are cut from a table of text.

    The window is the input that a forecast is appended to, else the first floating-point input that is not given from
    outside by its name. Unscaled columns and splits of 70, 10 and 20 % are assumed.

    Raises
    ------
    InputError
        Which column the forecast continues has to be said first.
    """
    spec = found.spec
    fed = [f.input for f in spec.feedback if f.output in spec.trajectory.outputs]
    floats = [p.name for p in source.signature.inputs if p.dtype.kind == "f"]
    plain = [name for name in floats if not (names.is_given(name) or names.is_fixed(name))]
    target = next(iter([*fed, *plain, *floats, *spec.inputs]))
    asked = next(
        (a for a in found.questions if any(f.into for spec in a.answers for f in spec.feedback)), None
    )
    if asked is not None and not fed:
        raise InputError(
            f"which column of the table {asked.about!r} forecasts is not known",
            where=str(source.path),
            todo=f'Give `rollout` with [windows] input = "{target}", targets = ["column"]; `tqs inspect` drafts it',
        )
    shares = {"train": [0.0, 0.7], "validation": [0.7, 0.8], "test": [0.8, 1.0]}
    windows = Windows.model_validate({"input": target, **shares})
    remark = "columns of the table are taken as they are: set `scaler` in [windows] if the model takes scaled values"
    return replace(found, spec=spec.model_copy(update={"windows": windows}), remarks=(*found.remarks, remark))


def in_steps(found: Draft, steps: int) -> Draft:
    """Return the draft with another number of steps, as the user asked."""
    return replace(found, spec=found.spec.with_steps(steps), reasons={**found.reasons, "steps": "as asked"})


def assumption(found: Draft) -> str:
    """Return one sentence on what a draft assumes."""
    spec = found.spec
    fed = [f"{f.output!r} becomes {f.input!r}" for f in spec.feedback]
    fed += [f"{f.input!r} is given at every step" for f in spec.forcing]
    n = spec.rollout.steps
    return f"rollout drafted: assumed {n} call{'s' if n > 1 else ''}; " + (
        "; ".join(fed) if fed else "nothing is fed back"
    )


def questions(found: Draft) -> tuple[str, ...]:
    """Return the questions of a draft, each with what is assumed until it is answered."""
    return tuple(
        f"not certain: {asked.text} Until rollout.toml says so, it is not fed back"
        for asked in found.questions
    )


__all__ = [
    "Draft",
    "assumption",
    "draft_text",
    "drafted",
    "in_steps",
    "questions",
    "tried",
    "untried",
    "with_windows",
]

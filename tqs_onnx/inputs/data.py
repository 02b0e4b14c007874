"""Reads the data of a job: the rollout spec, the scoring contexts, and the evaluation and calibration contexts.

Each may be a file or a value: a rollout spec as a dictionary or a `RolloutSpec`, contexts as arrays by name or as
`Contexts`. Values are identified by their digest. In place of contexts, ``made`` (or ``made:64``, their number) stands
for contexts that are made from the model itself; they are the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.inputs.drafting import Draft, assumption, draft_text, drafted, in_steps, questions, with_windows
from tqs_onnx.inputs.scaling import scaler_files, with_numbers
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.arrays import contexts_of
from tqs_onnx.rollout.contexts.context_set import Contexts, contexts_hash, kept_within
from tqs_onnx.rollout.contexts.load import check_disjoint, is_table, load_contexts
from tqs_onnx.rollout.guard import most_in_memory
from tqs_onnx.rollout.made.make import made_contexts_of
from tqs_onnx.rollout.made.request import InputScale, MadeRequest, made_request
from tqs_onnx.rollout.spec.check import check_spec, unjudged
from tqs_onnx.rollout.spec.completion import wired
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash, load_spec, spec_of
from tqs_passes.errors import InputError

Rollout = str | Path | Mapping[str, Any] | RolloutSpec
Arrays = str | Path | Mapping[str, NDArray[Any]] | Contexts
Split = Literal["train", "validation", "test"]
#: What stands for contexts that are made.
MADE = "made"
#: Seeds of made contexts, relative to that of the scoring contexts: no two sets share a context.
_SEEDS = {"contexts": 0, "evaluation": 1, "calibration": 2, "beside": 3}


@dataclass(frozen=True, slots=True, eq=False)
class DataOptions:
    """The data that a model is rolled out on.

    Parameters
    ----------
    rollout : path, mapping, RolloutSpec or None
        How outputs re-enter as inputs: a rollout.toml, its content as a dictionary, or a spec; None: drafted, see
        `drafting`.
    contexts : path, mapping of str to NDArray, or Contexts
        Scoring contexts, first axis context; a table is cut into both splits. ``made``, ``made:N`` or ``made:N:SEED``:
        contexts made from the model.
    evaluation : path, mapping of str to NDArray, Contexts or None
        Evaluation contexts; None: the test rows of the table, or made contexts of another seed if those for scoring are
        made.
    steps : int or None
        Model calls per rollout; None: as in the spec.
    max_contexts, max_eval_contexts : int or None
        Maximum numbers of scoring and of evaluation contexts.
    calibration : path, mapping of str to NDArray, Contexts or None
        Contexts for data-aware rounding; for a table, its training rows; None: the scoring contexts.
    input_scale : tuple of InputScale
        Units of inputs of made contexts; they take precedence over those that the graph states.
    made_beside : int
        Number of made contexts that data-aware rounding calibrates on beside the given ones.
    """

    rollout: Rollout | None = None
    contexts: Arrays = MADE
    evaluation: Arrays | None = None
    steps: int | None = None
    max_contexts: int | None = None
    max_eval_contexts: int | None = None
    calibration: Arrays | None = None
    input_scale: tuple[InputScale, ...] = ()
    made_beside: int = 0

    @property
    def given(self) -> dict[str, Rollout | Arrays]:
        """All given data, by role."""
        roles: dict[str, Rollout | Arrays | None] = {
            "rollout": self.rollout,
            "contexts": self.contexts,
            "evaluation": self.evaluation,
            "calibration": self.calibration,
        }
        return {role: value for role, value in roles.items() if value is not None}

    @property
    def files(self) -> dict[str, Path]:
        """The given files, by role."""
        made = self.made
        return {
            role: Path(v) for role, v in self.given.items() if isinstance(v, str | Path) and role not in made
        }

    @property
    def read_files(self) -> dict[str, Path]:
        """All files that are read, by role: those given, and the scalers that a given rollout.toml names."""
        return self.files | scaler_files(self.rollout)

    @property
    def made(self) -> dict[str, str]:
        """The requests for made contexts as they were written, by role."""
        texts = {role: str(v) for role, v in self.given.items() if isinstance(v, str | Path)}
        return {role: t for role, t in texts.items() if role != "rollout" and made_request(t) is not None}


@dataclass(frozen=True, slots=True)
class Data:
    """The rollout of a job and its sets of contexts.

    Parameters
    ----------
    spec : RolloutSpec
    scoring : Contexts
    judging : Contexts or None
        The evaluation contexts, disjoint from the others; None if none were given.
    calibration : Contexts or None
        None if the scoring contexts are used for calibration.
    beside : Contexts or None
        Made contexts to calibrate on beside the given ones.
    options : DataOptions
        The options they were read from.
    digests : dict of str to dict of str to str
        SHA-256 of data that no file holds, by role and by what they are.
    notes : tuple of str
        Notes on the data for the user.
    drafted : str
        The rollout.toml that was drafted; empty if a rollout spec was given.
    """

    spec: RolloutSpec
    scoring: Contexts
    judging: Contexts | None
    calibration: Contexts | None
    options: DataOptions
    digests: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    notes: tuple[str, ...] = ()
    drafted: str = ""
    beside: Contexts | None = None

    @property
    def files(self) -> dict[str, Path]:
        """All files that were read, by role, for the manifest."""
        return self.options.read_files

    @property
    def evaluation(self) -> Contexts:
        """The evaluation contexts.

        Raises
        ------
        InputError
            None were given.
        """
        if self.judging is None:
            raise InputError(
                "holds one set of contexts, which cannot be used for both scoring and evaluation",
                where=self.scoring.source,
                todo="Give `eval_contexts`",
            )
        return self.judging


def read_spec(options: DataOptions, source: Source) -> RolloutSpec:
    """Return the rollout spec, completed and checked against the model; drafted if none is given."""
    return _rollout(options, source)[0]


def _rollout(options: DataOptions, source: Source) -> tuple[RolloutSpec, Draft | None]:
    """Return the rollout spec, complete and checked, and its draft; no draft if the spec was given."""
    given, found = options.rollout, None
    where = str(given) if isinstance(given, str | Path) else "rollout"
    sets = (options.contexts, options.evaluation, options.calibration)
    files = [Path(item) for item in sets if isinstance(item, str | Path)]
    table = next((file for file in files if is_table(file)), None)
    if given is None:
        found = drafted(source)
        if table is not None:
            found = with_windows(found, source)
        if options.steps is not None:
            found = in_steps(found, options.steps)
        spec = found.spec
    elif isinstance(given, RolloutSpec):
        spec = given
    else:
        spec = load_spec(Path(given)) if isinstance(given, str | Path) else spec_of(given, where=where)
    if options.steps is not None:
        spec = spec.with_steps(options.steps)
    folder = Path(given).parent if isinstance(given, str | Path) else Path()
    try:
        spec = with_numbers(spec, source, folder, table)
        spec = wired(spec, source.signature)
        check_spec(spec, source.signature)
    except InputError as error:
        place = error.where.replace("rollout.toml", where, 1)
        raise InputError(error.what, where=place, todo=error.todo) from error
    return spec, found


def read_data(
    options: DataOptions, source: Source, *, scoring_only: bool = False, max_memory: int | None = None
) -> Data:
    """Read spec and contexts.

    The arrays of a set that take more than a quarter of `max_memory`, without it of the machine's memory, lie in
    temporary files.

    Parameters
    ----------
    options : DataOptions
    source : Source
    scoring_only : bool
        Do not read the evaluation contexts.
    max_memory : int or None
        Bytes that the job may hold.

    Raises
    ------
    InputError
        A file is invalid, the spec does not fit the model, or the evaluation contexts overlap with the scoring or
        calibration contexts.
    """
    spec, draft = _rollout(options, source)
    limit, room = options.max_contexts, most_in_memory(max_memory)
    scoring = _read(
        options.contexts, spec, source, "validation", limit, "contexts", options.input_scale, room
    )
    calibration = judging = None
    seed, scales = scoring.made_seed or 0, options.input_scale
    if options.calibration is not None:
        calibration = _read(
            options.calibration, spec, source, "train", limit, "calibration", scales, room, seed
        )
    notes = () if draft is None else (assumption(draft), *questions(draft))
    notes = (*notes, *unjudged(spec, source.signature))
    if calibration is not None:
        notes = (*notes, *(f"calibration: {note}" for note in calibration.notes))
    notes = (*notes, *scoring.notes)
    wanted = options.contexts if options.evaluation is None else options.evaluation
    if options.evaluation is None and scoring.is_made:
        wanted = MADE
    is_set = options.evaluation is not None or scoring.is_made or scoring.rows is not None
    if is_set and not scoring_only:
        most = options.max_eval_contexts
        judging = _read(wanted, spec, source, "test", most, "evaluation", scales, room, seed)
        check_disjoint(scoring, judging)
        if calibration is not None:
            check_disjoint(calibration, judging, "calibration")
        if scoring.is_made and judging.is_made and notes:
            others = f"evaluation on {judging.n_contexts} others (seed {judging.made_seed})"
            notes = (*notes[:-1], f"{notes[-1]}; {others}")
        else:
            notes = tuple(dict.fromkeys((*notes, *judging.notes)))
    sets = {"contexts": scoring, "evaluation": judging, "calibration": calibration}
    files = options.files
    digests = {
        role: {"(made)" if c.is_made else "(in memory)": contexts_hash(c)}
        for role, c in sets.items()
        if c is not None and role not in files and (c.is_made or role in options.given)
    }
    if "rollout" not in files:
        digests["rollout"] = {"(in memory)" if draft is None else "(drafted)": content_hash(spec)}
    text = "" if draft is None else draft_text(draft)
    beside = _beside(options, scoring if calibration is None else calibration, spec, source)
    if beside is not None:
        digests["beside"] = {"(made)": contexts_hash(beside)}
        notes = (*notes, f"calibration also on {beside.notes[0]}")
    return Data(spec, scoring, judging, calibration, options, digests, notes, text, beside)


def _beside(options: DataOptions, given: Contexts, spec: RolloutSpec, source: Source) -> Contexts | None:
    """Return the made contexts beside the given ones; none beside contexts that are made themselves."""
    if options.made_beside < 0:
        raise InputError(f"`made_beside` must be at least 0, not {options.made_beside}")
    if not options.made_beside or given.is_made:
        return None
    request = MadeRequest(options.made_beside, _SEEDS["beside"])
    return made_contexts_of(
        *(source.path, source.lifted, source.signature, spec, request, options.input_scale), like=given
    )


def _read(
    given: Arrays,
    spec: RolloutSpec,
    source: Source,
    split: Split,
    limit: int | None,
    role: str,
    scales: tuple[InputScale, ...],
    room: int | None,
    seed: int = 0,
) -> Contexts:
    if isinstance(given, str | Path):
        request = made_request(str(given), seed + _SEEDS[role])
        if request is None:
            return load_contexts(
                Path(given), spec, source.signature, split=split, limit=limit, most_bytes=room
            )
        request = replace(request, most=limit)
        made = made_contexts_of(source.path, source.lifted, source.signature, spec, request, scales)
        return kept_within(made, room)
    if isinstance(given, Contexts):
        return given if limit is None else given.take(range(min(limit, given.n_contexts)))
    stored = {name: np.asarray(array) for name, array in given.items()}
    return contexts_of(stored, spec, source.signature, role, limit=limit)

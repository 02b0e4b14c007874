"""The Python API: the stages of a job as functions of values; the commands run the same code.

A model may be a path, a `ModelProto` or an opened `Source`; a rollout spec may be a path, a dictionary or a
`RolloutSpec`; contexts may be a path or arrays by input name. Nothing is printed: notes go to `logging` (loggers below
``tqs_onnx``) and progress to a callback. The defaults are those of the commands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqs_onnx.allocation.servable import require_served
from tqs_onnx.emission import emit as _emit
from tqs_onnx.inputs.data import MADE, Arrays, Data, DataOptions, Rollout, read_data, read_spec
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.axis import Axis
from tqs_onnx.jobs.baseline import BaselineJob, BaselineOutcome
from tqs_onnx.jobs.baseline import baseline as _baseline
from tqs_onnx.jobs.frontier import SweepJob
from tqs_onnx.jobs.frontier import sweep as _sweep
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.jobs.quantize import Job, Outcome
from tqs_onnx.jobs.quantize import quantize as _quantize
from tqs_onnx.jobs.results import Allocated, Emitted, Verified
from tqs_onnx.packaging.package import PackageOptions
from tqs_onnx.packaging.package import package as _package
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.made.make import made_contexts_of
from tqs_onnx.rollout.made.request import InputScale, MadeRequest
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.score import Progress
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.subject import Subject
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts
from tqs_passes.grids.grid import Codes
from tqs_passes.plan.plan import Plan


def open_model(model: Given | Source, *, roles: Sequence[str] = (), run: RunOptions | None = None) -> Source:
    """Open a model and find its weights.

    Parameters
    ----------
    model : path, ModelProto or Source
    roles : sequence of str
        Roles set by the user, ``PATTERN=ROLE``.
    run : RunOptions, optional
        The model is first loaded in a child process on this provider; a file that crashes the runtime is refused.

    Returns
    -------
    Source
        The opened model, with `survey.weights`, `signature` and `facts`.

    Raises
    ------
    InputError
        The model cannot be read, has no weights, draws random numbers, or crashes the runtime.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> len(tqs.open_model(tqs.demo_files().model).survey.weights)
    31
    """
    return stages.opened(model, run or RunOptions(), roles)


def load_data(
    model: Given | Source,
    rollout: Rollout | None = None,
    contexts: Arrays = MADE,
    eval_contexts: Arrays | None = None,
    *,
    calibration: Arrays | None = None,
    steps: int | None = None,
    max_contexts: int | None = None,
    max_eval_contexts: int | None = None,
    made_beside: int = 0,
) -> Data:
    """Read a rollout spec and contexts, and check them against a model.

    Parameters
    ----------
    model : path, ModelProto or Source
    rollout : path, mapping, RolloutSpec or None
        How outputs re-enter as inputs; None: drafted.
    contexts : path, mapping of str to NDArray, or Contexts
        Scoring contexts ``[context, *input shape without the batch axis]`` for every input, in the data's units. A
        table is split by the spec's ``[windows]``; its test rows are the evaluation contexts. ``made`` or ``made:N``:
        contexts made from the model, with others of another seed for evaluation.
    eval_contexts : path, mapping of str to NDArray, Contexts or None
        Contexts to verify on, with ``truth/<output>`` if known.
    calibration : path, mapping of str to NDArray, Contexts or None
        Contexts for data-aware rounding; None: the scoring contexts.
    steps : int or None
        Model calls per rollout; None: as in the spec.
    max_contexts, max_eval_contexts : int or None
        Maximum numbers of contexts in each set.
    made_beside : int
        Number of made contexts that data-aware rounding calibrates on beside the given ones.

    Raises
    ------
    InputError
        A file is invalid, the spec does not fit the model, or scoring and evaluation contexts overlap.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> files = tqs.demo_files()
    >>> data = tqs.load_data(files.model, files.rollout, files.contexts, files.evaluation, max_contexts=4)
    >>> data.scoring.n_contexts
    4
    """
    options = DataOptions(
        *(rollout, contexts, eval_contexts, steps, max_contexts, max_eval_contexts, calibration),
        made_beside=made_beside,
    )
    return read_data(options, stages.opened_quietly(model))


def made_contexts(
    model: Given | Source,
    rollout: Rollout | None = None,
    n: int | None = None,
    seed: int = 0,
    *,
    input_scale: Mapping[str, tuple[float, float]] | None = None,
) -> Contexts:
    """Make contexts without data, from the model's graph and its rollout spec.

    Parameters
    ----------
    model : path, ModelProto or Source
    rollout : path, mapping, RolloutSpec or None
        None: drafted.
    n : int or None
        Number of contexts; None: 32, fewer if they are large.
    seed : int
        Another seed gives other contexts; the first n are the same for every n.
    input_scale : mapping of str to (mean, deviation), optional
        Units of inputs; default: those by which the graph normalises them, else 0 and 1.

    Returns
    -------
    Contexts
        Their `notes` say what was made for every input and in which units.

    Raises
    ------
    InputError
        The sizes of an input cannot be found, or the rollouts stay neither finite nor bounded.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> files = tqs.demo_files()
    >>> made = tqs.made_contexts(files.model, files.rollout, 4)
    >>> made.arrays["state"].shape, made.is_made
    ((4, 40), True)
    """
    source = stages.opened_quietly(model)
    spec = read_spec(DataOptions(rollout), source)
    scales = [InputScale(name, *numbers) for name, numbers in (input_scale or {}).items()]
    request = MadeRequest(n, seed)
    return made_contexts_of(source.path, source.lifted, source.signature, spec, request, scales)


def score(
    model: Given | Source,
    data: DataOptions | Data,
    options: ScoreOptions | None = None,
    *,
    run: RunOptions | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Measure how strongly each weight's rounding error grows over the forecast (TQS, paper Eqs. 1 and 2).

    Parameters
    ----------
    model : path, ModelProto or Source
    data : DataOptions or Data
        The scoring contexts are rolled out.
    options : ScoreOptions, optional
    run : RunOptions, optional
    store : Path, optional
        SQLite file that stores measurements as they arrive, so that the same call resumes after a stop.
    progress : callable, optional
        Called with (done, total, label) after each weight.

    Returns
    -------
    Scores
        γ per weight and horizon (per step), A_max, and the σ_v of every variable in its own unit.

    Raises
    ------
    InputError
        The model does not run, or its nominal rollout is not finite.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> files = tqs.demo_files()
    >>> data = tqs.DataOptions(files.rollout, files.contexts, steps=1, max_contexts=1)
    >>> len(tqs.score(files.model, data, tqs.ScoreOptions(response_bits=())).weights)
    31
    """
    source = stages.opened(model, run or RunOptions())
    read = data if isinstance(data, Data) else read_data(data, source, scoring_only=True)
    bed = stages.bed_of(source, read, run or RunOptions())
    return stages.scored(source, bed, options or ScoreOptions(), store, progress)


def allocate(
    model: Given | Source,
    scores: Scores | Path,
    options: QuantizeOptions,
    data: DataOptions | Data | None = None,
    *,
    store: Path | None = None,
) -> Allocated:
    """Choose a precision for every weight within a byte budget for the whole file.

    Parameters
    ----------
    model : path, ModelProto or Source
    scores : Scores or path
    options : QuantizeOptions
        Budget, tiers, serving profile, rounding; `score` and `gates` are not used.
    data : DataOptions or Data, optional
        The contexts used for scoring: the plan is then repaired, rounded with data if requested, and its joint drift is
        measured, as in `quantize`. Without them nothing is rolled out.
    store : Path, optional
        Path of the store of measured responses.

    Raises
    ------
    InputError
        The scores are for another model or other contexts, or the options need rollouts and no data are given.
    InfeasibleError
        No file that small can be written.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> files = tqs.demo_files()
    >>> data = tqs.DataOptions(files.rollout, files.contexts, steps=1, max_contexts=1)
    >>> scores = tqs.score(files.model, data, tqs.ScoreOptions(response_bits=()))
    >>> plan = tqs.allocate(files.model, scores, tqs.QuantizeOptions(tqs.Budget(8.0))).plan
    >>> plan.n_bytes <= plan.source_bytes / 8
    True
    """
    source = stages.opened(model, options.run, options.roles)
    known = scores if isinstance(scores, Scores) else read_scores(scores)
    read = read_data(data, source, scoring_only=True) if isinstance(data, DataOptions) else data
    return stages.allocated(source, known, read, options, store)


def emit(
    model: Given | Source,
    plan: Allocated | Plan,
    out: Path | str,
    codes: Mapping[str, Codes] | None = None,
    *,
    force: bool = False,
) -> Emitted:
    """Write the file that a plan describes, atomically; the same model, plan and codes give the same bytes.

    Parameters
    ----------
    model : path, ModelProto or Source
    plan : Allocated or Plan
    out : path
        The `.onnx` file to write.
    codes : mapping of str to Codes, optional
        Integers of a `Plan` with data-aware rounding; an `Allocated` contains its own.
    force : bool
        Replace a file that exists.

    Raises
    ------
    InputError
        The plan is for another model, or the file cannot be written.

    Examples
    --------
    See `examples/stages.py`.
    """
    source = stages.opened_quietly(model)
    chosen, given = _plan_and_codes(plan, codes)
    stages.require_plan_of(source, chosen)
    require_served(chosen, source, chosen.target)
    target = Path(out)
    if target.resolve() in {path.resolve() for path in source.files}:
        raise InputError(
            "the output would overwrite an input", where=str(target), todo="Choose another `out`"
        )
    if target.exists() and not force:
        raise InputError("exists", where=str(target), todo="Choose another `out`, or give `force`")
    _emit(source.lifted, chosen, target, given)
    return Emitted(target, source.facts.n_bytes, file_facts(target).n_bytes, chosen.n_bytes)


def _plan_and_codes(
    plan: Allocated | Plan, codes: Mapping[str, Codes] | None
) -> tuple[Plan, Mapping[str, Codes]]:
    return (plan.plan, plan.codes) if isinstance(plan, Allocated) else (plan, codes or {})


def verify(
    model: Given | Source,
    emitted: Emitted | Path | str,
    plan: Allocated | Plan,
    scores: Scores | Path,
    data: DataOptions | Data,
    *,
    gates: Sequence[str] = (),
    run: RunOptions | None = None,
    codes: Mapping[str, Codes] | None = None,
    timing: bool = False,
) -> Verified:
    """Roll out an emitted file under stock server options, compare it with its source, and check gates.

    Parameters
    ----------
    model : path, ModelProto or Source
        The source of the emitted file.
    emitted : Emitted or path
    plan : Allocated or Plan
        The plan that the file was emitted from.
    scores : Scores or path
        Their σ per variable is reused.
    data : DataOptions or Data
        Must hold evaluation contexts.
    gates : sequence of str
        E.g. ``drift:p95<=0.2``. Failed gates do not raise; see `gates` of the result.
    run : RunOptions, optional
    codes : mapping of str to Codes, optional
        Integers of a `Plan` with data-aware rounding.
    timing : bool
        Time the file against its source, also if no gate needs it.

    Raises
    ------
    GateError
        The file does not match its plan, or the runtime computes other results with it.
    InputError
        No evaluation contexts are given, or a gate cannot be evaluated.

    Examples
    --------
    See `examples/stages.py`.
    """
    options = run or RunOptions()
    source = stages.opened(model, options)
    read = stages.read(data, source, options, gates)
    known = scores if isinstance(scores, Scores) else read_scores(scores)
    file = emitted.out if isinstance(emitted, Emitted) else Path(emitted)
    chosen, given = _plan_and_codes(plan, codes)
    stages.require_made_of(source, chosen, known, read)
    subject = Subject(source.path, file, source.lifted, source.survey, chosen, given)
    bed = stages.bed_of(source, read, options, known)
    found, judged = stages.verified(subject, bed, read, gates, timing=timing)
    return Verified(found, judged, file)


def quantize(
    model: Given | Source,
    data: DataOptions | Data,
    options: QuantizeOptions,
    out: Path | str | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Make a model smaller: score, allocate, emit and verify in one go, as `tqs quantize` does.

    Parameters
    ----------
    model : path, ModelProto or Source
    data : DataOptions or Data
        Must hold evaluation contexts.
    options : QuantizeOptions
        The budget is required.
    out : path, optional
        Run directory; default: a new temporary folder.
    force : bool
        Write into a directory that holds an earlier run.
    progress : callable, optional
        See `score`.

    Raises
    ------
    InputError, InfeasibleError, GateError
        See the stages. Failed gates do not raise; see `gates` of the result.

    Examples
    --------
    >>> import tqs_onnx as tqs
    >>> files = tqs.demo_files()
    >>> data = tqs.DataOptions(files.rollout, files.contexts, files.evaluation, steps=1, max_contexts=1)
    >>> options = tqs.QuantizeOptions(tqs.Budget(4.0), refine=tqs.RefineOptions(repair_rounds=0))
    >>> tqs.quantize(files.model, data, options).verification.compression >= 4
    True
    """
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="tqs-run-"))
    return _quantize(Job(model, data, folder, options, force), progress)


def sweep(
    model: Given | Source,
    scores: Scores | Path,
    data: DataOptions | Data,
    compressions: Sequence[float],
    out: Path | str,
    options: QuantizeOptions | None = None,
    *,
    axis: Axis | None = None,
    force: bool = False,
) -> Pareto:
    """Write and measure a model at many compressions, from one set of scores: the accuracy-size frontier.

    Parameters
    ----------
    model : path, ModelProto or Source
    scores : Scores or path
    data : DataOptions or Data
        Must hold evaluation contexts.
    compressions : sequence of float
        Bytes of the input file over bytes of the output file.
    out : path
        Run directory.
    options : QuantizeOptions, optional
        The budget is not used.
    axis : Axis, optional
        Further axes to vary (paper, Table 3 and A.15); its compressions are replaced.
    force : bool
        Write into a directory that holds an earlier run.

    Raises
    ------
    InputError
        See the stages. A compression that cannot be met becomes a point without a file.

    Examples
    --------
    See `examples/frontier.py`.
    """
    chosen = replace(axis or Axis(()), compressions=tuple(compressions))
    job = SweepJob(model, scores, data, Path(out), chosen, options or QuantizeOptions(), force)
    return _sweep(job)


def baseline(
    model: Given | Source,
    data: DataOptions | Data,
    options: BaselineOptions,
    out: Path | str | None = None,
    *,
    force: bool = False,
) -> BaselineOutcome:
    """Round a model uniformly with a published method (RTN, GPTQ, GPTAQ, QEP), for comparison.

    Parameters
    ----------
    model : path, ModelProto or Source
    data : DataOptions or Data
        Must hold evaluation contexts.
    options : BaselineOptions
    out : path, optional
        Run directory; default: a new temporary folder.
    force : bool
        Write into a directory that holds an earlier run.

    Raises
    ------
    InputError, GateError
        See the stages.

    Examples
    --------
    See `examples/frontier.py`.
    """
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="tqs-baseline-"))
    return _baseline(BaselineJob(model, data, folder, options, force))


def package(
    emitted: Emitted | Outcome | Path | str, out: Path | str, options: PackageOptions, *, force: bool = False
) -> tuple[Path, ...]:
    """Wrap an emitted file for a server: a Triton model repository, a trtexec script, or the files for Olive.

    Parameters
    ----------
    emitted : Emitted, Outcome or path
    out : path
        Folder to write into.
    options : PackageOptions
    force : bool
        Write into a folder that is not empty.

    Returns
    -------
    tuple of Path
        The written files.

    Raises
    ------
    InputError
        The folder is not empty, or the name or a limit is invalid.

    Examples
    --------
    >>> import tempfile, tqs_onnx as tqs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = tqs.package(tqs.demo_files().model, folder, tqs.PackageOptions("triton", name="surrogate"))
    >>> [path.name for path in files]
    ['config.pbtxt', 'model.onnx']
    """
    path = emitted.out if isinstance(emitted, Emitted) else emitted
    path = path.emitted if isinstance(path, Outcome) else path
    return _package(Path(path), Path(out), options, force=force)

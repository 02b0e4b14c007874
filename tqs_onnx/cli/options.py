"""Options that several commands share, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from tqs_onnx.allocate.costing import PlanOptions
from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.tier_set import TierSet, parse_rule
from tqs_onnx.data import DataFiles
from tqs_onnx.refine import RefineOptions
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.assign import DATA_AWARE, METHODS, RoundingOptions
from tqs_onnx.score.probe import Probe, ProbeKind
from tqs_onnx.score.sweep import SweepOptions
from tqs_passes.encode.weight import Encoding
from tqs_passes.errors import InputError
from tqs_passes.forms import PROFILES
from tqs_passes.plan import Compute, ServingTarget
from tqs_passes.scales import DEFAULT_ROUNDING
from tqs_passes.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS, parse_tiers

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def _all(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
force_option = click.option("--force", is_flag=True, help="Replace what an earlier run left.")

run_options = _all(
    click.option(
        "--providers",
        type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]),
        default="cpu",
        show_default=True,
        help="Where the model runs.",
    ),
    click.option("--batch", type=click.IntRange(min=1), help="Most contexts a call [default: 32]."),
    click.option(
        "--threads", type=click.IntRange(min=0), default=0, help="Threads a call; 0: the runtime's choice."
    ),
)

engine_options = _all(
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who measures: this machine, or a Ray cluster (tqs-onnx[ray]).",
    ),
    click.option(
        "--address",
        help="Head of the Ray cluster, HOST:PORT [default: this machine's cluster, else one started here].",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes, or most actors on a cluster [default: 1, or as many as there is room for].",
    ),
)


def _data_options(*, required: bool) -> Callable[[F], F]:
    return _all(
        click.option(
            "--rollout", type=FILE, required=required, help="Rollout spec: how outputs re-enter as inputs."
        ),
        click.option(
            "--contexts",
            type=FILE,
            required=required,
            help="Scoring contexts: .npz, folder of .npy, or a table (.csv, .csv.gz).",
        ),
        click.option(
            "--steps", type=click.IntRange(min=1), help="Model calls a rollout [default: the spec's]."
        ),
        click.option("--max-contexts", type=click.IntRange(min=1), help="At most so many scoring contexts."),
    )


data_options = _data_options(required=True)
optional_data_options = _data_options(required=False)

evaluation_options = _all(
    click.option(
        "--eval-contexts", type=FILE, help="Evaluation contexts [default: the test rows of the table]."
    ),
    click.option(
        "--max-eval-contexts", type=click.IntRange(min=1), help="At most so many evaluation contexts."
    ),
)


def probe_option(*more: str) -> Callable[[F], F]:
    """Return `--probe`, with `more` choices than the kinds of probes."""
    return click.option(
        "--probe",
        type=click.Choice([*(k.value for k in ProbeKind), *more]),
        default="quant",
        show_default=True,
        help="Perturbation.",
    )


probe_settings = _all(
    click.option(
        "--probe-bits",
        type=click.IntRange(2, 8),
        default=6,
        show_default=True,
        help="Bits of the reference rounding.",
    ),
    click.option(
        "--response-bits",
        default="4,2",
        show_default=True,
        help="Further widths at which the response is measured, for the allocator; 'none' for none.",
    ),
    click.option(
        "--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Draws of the gauss probe."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the gauss probe."),
    click.option(
        "--horizons", help="Steps at which γ is taken, e.g. 1,5,10 [default: a schedule up to --steps]."
    ),
    click.option(
        "--units",
        type=click.Choice(["std", "raw"]),
        default="std",
        show_default=True,
        help="Units of divergence.",
    ),
)

probe_options = _all(probe_option(), probe_settings)

plan_options = _all(
    click.option(
        "--objective",
        type=click.Choice([o.value for o in Objective]),
        help="What the knapsack minimises [default: measured where --rounding looks at data, else energy].",
    ),
    click.option(
        "--solver",
        type=click.Choice(["mckp", "greedy", "greedy-top"]),
        default="mckp",
        show_default=True,
        help="Allocator.",
    ),
    click.option(
        "--p-fp32",
        type=click.FloatRange(0, 1),
        help="Share of FP32 bytes protected [default: 0; paper: 0.02].",
    ),
    click.option("--gamma-min", type=float, help="Weights with γ_task at or below it get the bottom tier."),
    click.option("--tiers", help="Tiers allowed, e.g. FP32,BF16,INT8,INT4,INT2 [default: all but BF16]."),
    click.option(
        "--pin",
        "pins",
        multiple=True,
        metavar="PATTERN=TIERS",
        help="Weights by name that get these tiers only, e.g. 'head.*=INT8'. Repeatable.",
    ),
    click.option(
        "--forbid",
        "bans",
        multiple=True,
        metavar="PATTERN=TIERS",
        help="Weights by name that do not get these tiers, e.g. '*.norm.*=INT2,INT1'. Repeatable.",
    ),
    click.option(
        "--max-fp32",
        type=click.IntRange(min=0),
        help="Most weights in FP32, one of a block; others get 16 bits or fewer (the paper's cap on Pangu).",
    ),
    click.option(
        "--tie",
        "ties",
        multiple=True,
        metavar="PATTERN",
        help="Weights by name that get one tier together, e.g. 'layers.0.*'. Repeatable.",
    ),
    click.option("--untie", is_flag=True, help="Weights scored as a block may get different tiers."),
    click.option("--drop-outputs", is_flag=True, help="Outputs outside the trajectory do not matter."),
    click.option(
        "--profile",
        type=click.Choice(PROFILES),
        default="fast",
        show_default=True,
        help="Serving profile written into the file: fast, exact, or small (least memory).",
    ),
    click.option(
        "--target",
        type=click.Choice([t.value for t in ServingTarget]),
        default=ServingTarget.ORT_CPU.value,
        show_default=True,
        help="What serves the file; ways to store a weight that it cannot serve are not offered.",
    ),
    click.option(
        "--encoding",
        type=click.Choice([e.value for e in Encoding]),
        default=Encoding.PLANES.value,
        show_default=True,
        help="Integer tiers as bit planes (any width and opset), or as ONNX's own INT8 and INT4.",
    ),
    click.option(
        "--opset", type=click.IntRange(9, 25), help="Convert the model first [default: its own opset]."
    ),
    click.option(
        "--compute",
        type=click.Choice(["fp16", "bf16"]),
        help="Blocks compute with 16-bit floats, cast at their borders; bf16 needs --target ort-cuda or tensorrt.",
    ),
    click.option(
        "--compute-blocks",
        help=r"Which blocks: a regular expression over labels and nodes, e.g. 'layers\.\d+' [default: all].",
    ),
    click.option(
        "--standard-ops",
        is_flag=True,
        help="ONNX's own operators only: none of onnxruntime's, such as MatMulNBits.",
    ),
    click.option(
        "--rows/--no-rows",
        default=True,
        show_default=True,
        help="Offer row tiers: channels of one weight at different widths, where that pays.",
    ),
    click.option("--groups", help="Offer matrices with a scale for so many values of a channel, e.g. 32,64."),
    click.option("--keep-constants", is_flag=True, help="Store masks, maps and index tables as they are."),
)

budget_options = _all(
    click.option("--compression", type=float, help="Input file over output file."),
    click.option("--max-bytes", type=int, help="Most bytes of the output file."),
)

calibration_option = click.option(
    "--calibration",
    type=FILE,
    help="Contexts for rounding by data, of a table its training rows [default: the scoring contexts].",
)

rounding_options = _all(
    click.option(
        "--rounding",
        type=click.Choice(METHODS),
        default=DEFAULT_ROUNDING,
        show_default=True,
        help="How integers are chosen: rtn, mse, unbiased see the weights alone, the others the contexts too.",
    ),
    calibration_option,
)


def _refine_options(rounds: int) -> Callable[[F], F]:
    return _all(
        click.option(
            "--repair",
            type=click.IntRange(min=0),
            default=rounds,
            show_default=True,
            help="Rounds of joint repair: trial promotions and demotions, judged on scoring contexts set aside.",
        ),
        rounding_options,
    )


refine_options = _refine_options(3)
later_refine_options = _refine_options(0)

gate_options = _all(
    click.option("--max-drift", type=float, help="Fail (exit 3) when the drift is larger."),
    click.option(
        "--max-degradation", type=float, help="Fail when the worst variable's MAE degrades more, in percent."
    ),
    click.option("--min-compression", type=float, help="Fail when the file is larger than that."),
    click.option(
        "--gate",
        "gates",
        multiple=True,
        help="Any gate, e.g. 'drift:p95<=0.2', 'drift:variable=OT<=0.1', 'degradation:step=4<=5'. Repeatable.",
    ),
)


def data_files(options: dict[str, Any]) -> DataFiles:
    """Return the files and limits given."""
    return DataFiles(
        rollout=options["rollout"],
        contexts=options["contexts"],
        evaluation=options.get("eval_contexts"),
        steps=options["steps"],
        max_contexts=options["max_contexts"],
        max_eval_contexts=options.get("max_eval_contexts"),
        calibration=options.get("calibration"),
    )


def sweep_options(options: dict[str, Any]) -> SweepOptions:
    """Return the sweep given.

    Raises
    ------
    InputError
        `--horizons` is no increasing list of steps, or `--address` is given without a cluster.
    """
    if options["address"] is not None and options["engine"] != "ray":
        raise InputError("--address names a Ray cluster", todo="Give --engine ray with it")
    return SweepOptions(
        probe=Probe(
            kind=ProbeKind(options["probe"]),
            bits=options["probe_bits"],
            draws=options["draws"],
            seed=options["seed"],
        ),
        response_bits=_response_bits(options["response_bits"]),
        horizons=_horizons(options["horizons"]),
        units=cast("Literal['std', 'raw']", options["units"]),
        provider=resolve_provider(options["providers"]),
        batch=options["batch"],
        threads=options["threads"],
        engine=cast("Literal['local', 'ray']", options["engine"]),
        address=options["address"],
        workers=options["workers"],
    )


def _response_bits(text: str) -> tuple[int, ...]:
    if text.strip().lower() == "none":
        return ()
    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--response-bits {text!r} is not a list of widths", todo="Write e.g. 4,2"
        ) from error
    if any(not 1 <= b <= 8 for b in bits):
        raise InputError(f"--response-bits {text!r} must lie between 1 and 8", todo="Write e.g. 4,2")
    return bits


def _horizons(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--horizons {text!r} is not a list of steps", todo="Write e.g. 1,5,10") from error
    if steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
        raise InputError(f"--horizons {text!r} must increase from 1 or more", todo="Write e.g. 1,5,10")
    return steps


def planning(options: dict[str, Any]) -> PlanOptions:
    """Return how bytes are spent."""
    by_data = options.get("rounding") in DATA_AWARE
    usual = Objective.MEASURED if by_data else Objective.ENERGY
    return PlanOptions(
        objective=Objective(options["objective"] or usual),
        solver=options["solver"],
        p_fp32=options["p_fp32"],
        gamma_min=options["gamma_min"],
        drop_outputs=options["drop_outputs"],
        max_fp32=options["max_fp32"],
        ties=tuple(options["ties"]),
        untie=options["untie"],
    )


def serving(options: dict[str, Any]) -> Serving:
    """Return what the file is made for.

    Raises
    ------
    InputError
        The target cannot compute with that type, or blocks are named without one.
    """
    return Serving(
        target=ServingTarget(options["target"]),
        encoding=Encoding(options["encoding"]),
        constants="keep" if options["keep_constants"] else "small",
        opset=options["opset"],
        compute=_compute(options["compute"], options["compute_blocks"]),
        standard_ops=options["standard_ops"],
        rows=options["rows"],
        groups=_sizes(options["groups"]),
    )


def _sizes(text: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"--groups {text!r} is no list of numbers", todo="Write e.g. 32,64") from error
    if any(size < 2 for size in sizes):
        raise InputError(f"--groups {text!r}: a group has two values or more", todo="Write e.g. 32,64")
    return sizes


def _compute(dtype: str | None, blocks: str | None) -> Compute | None:
    if dtype is None:
        if blocks is not None:
            raise InputError("says which blocks, but not how", where="--compute-blocks", todo="Add --compute")
        return None
    return Compute(dtype="float16" if dtype == "fp16" else "bfloat16", blocks=blocks)


def tiers(options: dict[str, Any], text: str | None = None) -> TierSet:
    """Return the tiers allowed, those of `text` where given."""
    named = text or options["tiers"]
    return TierSet(
        parse_tiers(named) if named else DEFAULT_TIERS,
        tuple(parse_rule(rule, "--pin") for rule in options["pins"]),
        tuple(parse_rule(rule, "--forbid") for rule in options["bans"]),
    )


def gate_texts(options: dict[str, Any]) -> list[str]:
    """Return every gate given, as text."""
    texts = list(options["gates"])
    if options["max_drift"] is not None:
        texts.append(f"drift<={options['max_drift']}")
    if options["max_degradation"] is not None:
        texts.append(f"degradation<={options['max_degradation']}")
    if options["min_compression"] is not None:
        texts.append(f"compression>={options['min_compression']}")
    return texts


def refining(options: dict[str, Any]) -> RefineOptions:
    """Return what is done to an allocated plan."""
    return RefineOptions(
        repair_rounds=options["repair"], rounding=RoundingOptions(method=options["rounding"])
    )

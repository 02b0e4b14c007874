"""Options of a plan: how bytes are spent, what the file is made for, how integers are chosen; and what they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tqs_onnx.allocate.costing import PlanOptions
from tqs_onnx.allocate.objective import Objective
from tqs_onnx.allocate.tier_set import TierSet, parse_rule
from tqs_onnx.cli.options import FILE, F, all_of
from tqs_onnx.refine.refine import RefineOptions
from tqs_onnx.rounding.assign import DATA_AWARE, METHODS, RoundingOptions
from tqs_passes.encode.weight import Encoding
from tqs_passes.errors import InputError
from tqs_passes.grids.scales import DEFAULT_ROUNDING
from tqs_passes.plan.forms import PROFILES
from tqs_passes.plan.plan import Compute, ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS, parse_tiers

opset_option = click.option(
    "--opset", type=click.IntRange(9, 25), help="Convert the model first [default: its own opset]."
)

plan_options = all_of(
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
        help="Integer tiers as bit planes (any width, from opset 9), or as ONNX's own INT8 and INT4.",
    ),
    opset_option,
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

budget_options = all_of(
    click.option("--compression", type=float, help="Input file over output file."),
    click.option(
        "--weight-compression",
        type=float,
        help="Bytes of the weights in MODEL over theirs in the file, tables included.",
    ),
    click.option("--max-bytes", type=int, help="Most bytes of the output file."),
)

calibration_option = click.option(
    "--calibration",
    type=FILE,
    help="Contexts for rounding by data, of a table its training rows [default: the scoring contexts].",
)

rounding_options = all_of(
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
    return all_of(
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


def refining(options: dict[str, Any]) -> RefineOptions:
    """Return what is done to an allocated plan."""
    return RefineOptions(
        repair_rounds=options["repair"], rounding=RoundingOptions(method=options["rounding"])
    )

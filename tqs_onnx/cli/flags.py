"""One table of every flag that fills an option class: its name, its field, its group and its help.

The keys of build files and the translation of parameter names in error messages use the same table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from tqs_onnx.allocation.objective import Objective, RankBy
from tqs_onnx.allocation.tier_set import parse_rule
from tqs_onnx.cli.finite import Finite, FiniteRange
from tqs_onnx.cli.flag import Flag, Group
from tqs_onnx.rollout.made.request import input_scale
from tqs_onnx.rounding.assign import METHODS
from tqs_onnx.scoring.plan.probe import ProbeKind
from tqs_passes.encode.weight import Encoding
from tqs_passes.errors import InputError
from tqs_passes.grids.scales import FREE_ROUNDINGS
from tqs_passes.plan.forms import PROFILES
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.tier import parse_tiers
from tqs_passes.weights import Role

FILE = click.Path()


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a reader for comma-separated numbers; `none` gives an empty list."""

    def read(text: str) -> list[Any]:
        if text.strip().lower() in ("", "none"):
            return []
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise InputError(f"{text!r} is not a list of numbers", todo="Write e.g. 4,2") from error

    return read


def _compute(text: str) -> str:
    return {"fp16": "float16", "bf16": "bfloat16"}[text]


def _percent(text: str) -> str:
    """Return the gate of a largest degradation such as ``1%`` or ``0.5``."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError as error:
        raise InputError(f"{text!r} is not a percentage", todo="Write e.g. 1%") from error
    if not 0 < value < math.inf:
        raise InputError(f"{text!r} is not a number above 0", todo="Write e.g. 1%")
    return f"degradation<={value:g}"


D, P, S, R, C, G, M = (
    *(Group.DATA, Group.PRECISION, Group.SERVING, Group.ROUNDING),
    *(Group.SCORING, Group.GATES, Group.MACHINE),
)
_POSITIVE = click.IntRange(min=1)

ROLLOUT = Flag(
    "--rollout", "data.rollout", D, "Rollout spec: how outputs re-enter as inputs [default: drafted].", FILE
)
CONTEXTS = Flag(
    "--contexts",
    "data.contexts",
    D,
    "Scoring contexts: .npz, folder of .npy, a table (.csv, .csv.gz), or made:N, made from the model itself "
    "[default: made].",
    FILE,
)
INPUT_SCALE = Flag(
    "--input-scale",
    "data.input_scale",
    D,
    "Mean and deviation of an input of made contexts [default: as the graph normalises it, else 0,1]. Repeatable.",
    read=input_scale,
    several=True,
    metavar="NAME=MEAN,DEVIATION",
)
STEPS = Flag("--steps", "data.steps", D, "Model calls per rollout [default: the spec's].", _POSITIVE)
MAX_CONTEXTS = Flag(
    "--max-contexts", "data.max_contexts", D, "Maximum number of scoring contexts.", _POSITIVE
)
EVAL_CONTEXTS = Flag(
    "--eval-contexts",
    "data.evaluation",
    D,
    "Evaluation contexts [default: the test rows of the table, or other made contexts].",
    FILE,
)
MAX_EVAL_CONTEXTS = Flag(
    "--max-eval-contexts", "data.max_eval_contexts", D, "Maximum number of evaluation contexts.", _POSITIVE
)
CALIBRATION = (
    Flag(
        "--calibration",
        "data.calibration",
        D,
        "Contexts for data-aware rounding; for a table, its training rows [default: the scoring contexts].",
        FILE,
    ),
    Flag(
        "--made-beside",
        "data.made_beside",
        D,
        "Made contexts to calibrate on beside the given ones.",
        click.IntRange(min=0),
    ),
)
COMPRESSION = Flag(
    "--compression",
    "budget.compression",
    P,
    "Bytes of the input file over bytes of the output file.",
    Finite(),
)
TARGET_DRIFT = Flag(
    "--target-drift",
    "budget.target",
    P,
    "Make the smallest file whose drift on the evaluation contexts is at most this.",
    FiniteRange(min=0, min_open=True),
    "drift<={}".format,
)
ROUNDING = Flag(
    "--rounding",
    "refine.rounding.method",
    R,
    "How integers are chosen: rtn, mse and unbiased use only the weights, the others also the contexts.",
    click.Choice(METHODS),
)
PROFILE = Flag(
    "--profile",
    "profile",
    S,
    "Serving profile written into the file: fast, exact, small (least memory), or qdq (for other tools).",
    click.Choice(PROFILES),
)
MAX_DRIFT = Flag(
    "--max-drift", "gates", G, "Fail (exit 3) if the drift is larger.", Finite(), "drift<={}".format
)
PROVIDERS = Flag(
    "--providers",
    "run.provider",
    M,
    "Execution provider; auto: CUDA if it works, otherwise the CPU.",
    click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
)

DATA = (ROLLOUT, CONTEXTS, STEPS, MAX_CONTEXTS, INPUT_SCALE)
EVALUATION = (EVAL_CONTEXTS, MAX_EVAL_CONTEXTS)
BUDGET = (
    COMPRESSION,
    Flag(
        "--weight-compression",
        "budget.weight_compression",
        P,
        "Bytes of the weights in MODEL over their bytes in the output file, tables included.",
        Finite(),
    ),
    Flag("--max-bytes", "budget.max_bytes", P, "Maximum size of the output file in bytes.", click.INT),
    Flag(
        "--speedup",
        "plan.speedup",
        P,
        "Be at least so many times faster than FP32 on this machine, at --batch and --threads; alone or with bytes.",
        Finite(),
    ),
    Flag(
        "--max-latency",
        "plan.speedup",
        P,
        "The same as the largest share of FP32's time: 0.5 is --speedup 2.",
        FiniteRange(min=0, min_open=True),
        lambda share: 1 / share,
        metavar="SHARE",
    ),
    Flag(
        "--round-inputs",
        "plan.round_inputs",
        P,
        "Weights whose readers must round their inputs to 8 bits; '*' for all.",
        several=True,
        metavar="PATTERN",
    ),
    TARGET_DRIFT,
    Flag(
        "--target-degradation",
        "budget.target",
        P,
        "Make the smallest file whose MAE is worse by at most this on the evaluation contexts, e.g. 1%.",
        read=_percent,
        metavar="PERCENT",
    ),
)
PLANNING = (
    Flag(
        "--objective",
        "plan.objective",
        P,
        "What the knapsack minimises [default: measured if --rounding uses data, else energy].",
        click.Choice([o.value for o in Objective]),
    ),
    Flag("--solver", "plan.solver", P, "Allocator.", click.Choice(["mckp", "greedy", "greedy-top"])),
    Flag(
        "--p-fp32",
        "plan.p_fp32",
        P,
        "Share of the FP32 bytes that stay in FP32 [default: 0; paper: 0.02].",
        FiniteRange(0, 1),
    ),
    Flag(
        "--gamma-min",
        "plan.gamma_min",
        P,
        "Weights with γ (see --rank-by) at or below this value get the bottom tier.",
        Finite(),
    ),
    Flag(
        "--rank-by",
        "plan.rank_by",
        P,
        "The γ that the paper's objectives, --p-fp32 and --gamma-min go by: Eq. 1, Eq. 2, or Eq. 1 over all horizons.",
        click.Choice([r.value for r in RankBy]),
    ),
    Flag(
        "--tiers",
        "tiers.tiers",
        P,
        "Allowed tiers, e.g. FP32,BF16,INT8,INT4,INT2 [default: all but BF16].",
        read=parse_tiers,
    ),
    Flag(
        "--pin",
        "tiers.pins",
        P,
        "Give weights, by name, only these tiers, e.g. 'head.*=INT8'. Repeatable.",
        read=lambda text: parse_rule(text, "pin"),
        several=True,
        metavar="PATTERN=TIERS",
    ),
    Flag(
        "--forbid",
        "tiers.bans",
        P,
        "Never give weights, by name, these tiers, e.g. '*.norm.*=INT2,INT1'. Repeatable.",
        read=lambda text: parse_rule(text, "forbid"),
        several=True,
        metavar="PATTERN=TIERS",
    ),
    Flag(
        "--max-fp32",
        "plan.max_fp32",
        P,
        "Maximum number of FP32 weights, one per block; others get 16 bits or fewer (the paper's cap on Pangu).",
        click.IntRange(min=0),
    ),
    Flag(
        "--tie",
        "plan.ties",
        P,
        "Give weights, by name, one common tier, e.g. 'layers.0.*'. Repeatable.",
        several=True,
        metavar="PATTERN",
    ),
    Flag("--untie", "plan.untie", P, "Let weights scored as a block get different tiers.", switch=True),
    Flag(
        "--drop-outputs",
        "plan.drop_outputs",
        P,
        "Ignore the effect on outputs outside the trajectory.",
        switch=True,
    ),
    Flag(
        "--rows/--no-rows",
        "serving.rows",
        P,
        "Offer row tiers where useful: channels of one weight at different widths.",
        switch=True,
    ),
    Flag(
        "--groups",
        "serving.groups",
        P,
        "Also offer matrices with one scale per this many values of a channel, e.g. 32,64.",
        read=numbers(int),
    ),
)
OPSET = Flag(
    "--opset",
    "serving.opset",
    S,
    "Convert the model to this opset first [default: its own opset].",
    click.IntRange(9, 25),
)
SERVING = (
    PROFILE,
    Flag(
        "--target",
        "serving.target",
        S,
        "Runtime that serves the file; only weight formats that it can serve are offered.",
        click.Choice([t.value for t in ServingTarget]),
    ),
    Flag(
        "--encoding",
        "serving.encoding",
        S,
        "Store integers as bit planes (any width, from opset 9), or as ONNX's own INT8 and INT4.",
        click.Choice([e.value for e in Encoding]),
    ),
    OPSET,
    Flag(
        "--compute",
        "serving.compute.dtype",
        S,
        "Compute blocks in 16-bit floats, with casts at their borders; bf16 needs --target ort-cuda or tensorrt.",
        click.Choice(["fp16", "bf16"]),
        _compute,
    ),
    Flag(
        "--compute-blocks",
        "serving.compute.blocks",
        S,
        r"Blocks for --compute: a regular expression over labels and nodes, e.g. 'layers\.\d+' [default: all].",
    ),
    Flag(
        "--standard-ops",
        "serving.standard_ops",
        S,
        "Use only standard ONNX operators, none of onnxruntime's own, such as MatMulNBits.",
        switch=True,
    ),
    Flag(
        "--names",
        "serving.names",
        S,
        "Names of inner values: short (one to three letters, with a map beside the file), keep, or auto: short where "
        "names exceed 3 % of a file with weights of 4 bits.",
        click.Choice(["auto", "short", "keep"]),
    ),
    Flag(
        "--keep-name",
        "serving.pinned",
        S,
        "Pattern of inner names that stay, with * and ?; repeat for several.",
        several=True,
    ),
    Flag(
        "--graph",
        "serving.graph",
        S,
        "The graph besides its weights: slim (equal nodes merged, shapes computed, notes dropped, same outputs bit for "
        "bit), keep, or auto: slim where it exceeds 3 % of a file with weights of 4 bits.",
        click.Choice(["auto", "slim", "keep"]),
    ),
    Flag(
        "--keep-constants",
        "serving.constants",
        S,
        "Store masks, maps and index tables unchanged.",
        read=lambda _: "keep",
        switch=True,
    ),
)
REFINING = (
    ROUNDING,
    Flag(
        "--candidates",
        "refine.candidates",
        R,
        "Plans to compare by their joint drift on held-out contexts, uniform widths among them; 1: no comparison.",
        click.IntRange(min=1),
    ),
    Flag(
        "--repair",
        "refine.repair_rounds",
        R,
        "Rounds of joint repair: trial promotions and demotions, judged on held-out scoring contexts "
        "[default: 3 where the weights alone choose integers, else 0].",
        click.IntRange(min=0),
    ),
    Flag(
        "--tune/--no-tune",
        "refine.tune",
        R,
        "Choose QEP's settings among six, on held-out contexts.",
        switch=True,
    ),
)
PROBE = Flag(
    "--probe", "score.probe.kind", C, "Kind of perturbation.", click.Choice([k.value for k in ProbeKind])
)
SCORING = (
    PROBE,
    Flag("--probe-bits", "score.probe.bits", C, "Bits of the reference rounding.", click.IntRange(2, 8)),
    Flag(
        "--response-bits",
        "score.response_bits",
        C,
        "Further widths at which responses are measured for the allocator; 'none': no further widths.",
        read=numbers(int),
    ),
    Flag("--draws", "score.probe.draws", C, "Number of draws of the gauss probe.", _POSITIVE),
    Flag("--seed", "score.probe.seed", C, "Seed of the gauss probe.", click.INT),
    Flag(
        "--per-channel",
        "score.probe.per_channel",
        C,
        "Round probes with one scale per channel instead of one per tensor.",
        switch=True,
    ),
    Flag(
        "--horizons",
        "score.horizons",
        C,
        "Steps at which γ is computed, e.g. 1,5,10 [default: a schedule up to --steps].",
        read=numbers(int),
    ),
    Flag(
        "--units",
        "score.units",
        C,
        "Units of the divergence: each variable's σ, or the data's own.",
        click.Choice(["std", "raw"]),
    ),
    Flag(
        "--blocks",
        "score.blocks.rule",
        C,
        "Score sets of weights: pattern:REGEX, nodes:N, nodes:A-B,C-D, stored:N, prefix:DEPTH, or auto "
        "(residual chains).",
    ),
    Flag(
        "--block-score",
        "score.blocks.score",
        C,
        "Perturb the members of a block together, or average their own scores [default: joint].",
        click.Choice(["joint", "mean"]),
    ),
    Flag(
        "--early-stop",
        "score.early_stop.tolerance",
        C,
        "End a rollout when γ_task changes by at most this much over --early-window steps.",
        FiniteRange(min=0, min_open=True),
    ),
    Flag(
        "--early-window",
        "score.early_stop.window",
        C,
        "Number of steps for --early-stop [default: 3].",
        _POSITIVE,
    ),
    Flag(
        "--group-test",
        "score.group_test",
        C,
        "Test families of weights that look dead with one joint rollout.",
        switch=True,
    ),
    Flag(
        "--dead-below",
        "score.dead_below",
        C,
        "Weights with γ_task at or below this value are dead [paper: -50].",
        Finite(),
    ),
    Flag(
        "--dead-at-minimum",
        "score.dead_at_minimum",
        C,
        "Count weights below the floor that tie at the lowest γ_task as dead.",
        switch=True,
    ),
    Flag(
        "--role",
        "roles",
        C,
        "Set the role of the weights whose label matches a shell pattern; the last match applies. Roles: "
        f"{', '.join(Role)}. Repeatable.",
        several=True,
        metavar="PATTERN=ROLE",
    ),
)
ROLE = SCORING[-1]
RUN = (
    PROVIDERS,
    Flag("--batch", "run.batch", M, "Maximum contexts per call [default: 32].", _POSITIVE),
    Flag(
        "--threads",
        "run.threads",
        M,
        "Threads per call, and of linear algebra; 0: as many as help.",
        click.IntRange(min=0),
    ),
    Flag(
        "--device",
        "run.devices",
        M,
        "GPUs by number, e.g. 0,1: scoring runs a worker on each, all else on the first [default: 0].",
        read=numbers(int),
    ),
    Flag(
        "--strict-device",
        "run.strict_device",
        M,
        "Refuse a model of which the runtime places nodes on the CPU although a GPU was asked for.",
        switch=True,
    ),
    Flag(
        "--max-memory",
        "run.max_memory",
        M,
        "Memory limit in megabytes: scoring splits contexts to fit; contexts and nominal rollouts may lie in files.",
        FiniteRange(min=1),
        lambda megabytes: int(1e6 * megabytes),
    ),
)
ENGINE = (
    Flag(
        "--activations",
        "score.activations",
        C,
        "Also score the inputs of matrices, rounded to 8 bits at every call; `speedup` needs them.",
        switch=True,
    ),
    Flag(
        "--ranges",
        "score.ranges",
        C,
        "Fix the ranges of those inputs in advance, as --profile qdq does: uint8, or int8 for TensorRT.",
        click.Choice(["uint8", "int8"]),
    ),
    Flag(
        "--engine",
        "score.engine",
        M,
        "Where scoring runs: on this machine, or on a Ray cluster (tqs-onnx[ray]).",
        click.Choice(["local", "ray"]),
    ),
    Flag(
        "--address",
        "score.address",
        M,
        "Head of the Ray cluster, HOST:PORT [default: this machine's cluster, else a new local one].",
    ),
    Flag(
        "--workers",
        "score.workers",
        M,
        "Number of processes, or maximum actors on a cluster [default: 1, or as many as fit on the cluster].",
        _POSITIVE,
    ),
)
GATES = (
    MAX_DRIFT,
    Flag(
        "--max-degradation",
        "gates",
        G,
        "Fail if the worst variable's MAE degrades by more than this, in percent.",
        Finite(),
        "degradation<={}".format,
    ),
    Flag(
        "--min-compression",
        "gates",
        G,
        "Fail if the compression is smaller.",
        Finite(),
        "compression>={}".format,
    ),
    Flag(
        "--gate",
        "gates",
        G,
        "Any gate, e.g. 'drift:p95<=0.2', 'degradation:step=4<=5', 'latency<=0.6', 'memory<=0.8'. Repeatable.",
        several=True,
    ),
    Flag(
        "--timing",
        "timing",
        G,
        "Measure load time, memory and latency against FP32, as the gates `latency` and `memory` do.",
        switch=True,
    ),
)
SAVE_TRACES = Flag(
    "--save-traces",
    "save_traces",
    G,
    "Evaluation contexts whose forecasts are kept in traces.npz [default: up to 3, if they take at most 4 MiB].",
    click.IntRange(min=0),
)
QUANTIZE = (
    *(
        *DATA,
        *EVALUATION,
        *CALIBRATION,
        *BUDGET,
        *PLANNING,
        *SERVING,
        *REFINING,
        *SCORING,
        *GATES,
        SAVE_TRACES,
    ),
    *(*RUN, *ENGINE),
)
BASELINE = (
    Flag("--method", "method", R, "How integers are chosen.", click.Choice(METHODS)),
    Flag("--bits", "bits", R, "Bits of every matrix.", click.IntRange(1, 8)),
    Flag(
        "--group",
        "group",
        R,
        "Values of a channel that share a scale; 0: all. Channels not divisible by it keep one scale.",
        click.IntRange(min=0),
    ),
    Flag("--damp", "damp", R, "Damping of GPTQ and GPTAQ.", FiniteRange(min=0)),
    Flag(
        "--scales",
        "scales",
        R,
        "Scales on which GPTQ, GPTAQ and QEP round.",
        click.Choice(FREE_ROUNDINGS),
    ),
    Flag("--alpha", "alpha", R, "Strength of GPTAQ's correction.", Finite()),
    Flag("--qep-damp", "qep_damp", R, "Damping of QEP; turns its tuning off.", FiniteRange(min=0)),
    Flag("--qep-strength", "qep_strength", R, "Strength of QEP; turns its tuning off.", Finite()),
    Flag(
        "--act-order/--no-act-order",
        "act_order",
        R,
        "Round the columns of the most active inputs first.",
        switch=True,
    ),
    PROFILE,
    OPSET,
    *(*GATES, SAVE_TRACES, ROLE, *RUN),
)


def flags_by_parameter() -> dict[str, str]:
    """Return the flag of every parameter that an error may name, by its key, field or path."""
    found: dict[str, str] = {}
    for flag in (*QUANTIZE, *BASELINE):
        name = flag.name.partition("/")[0]
        for known in (flag.path, flag.path.rpartition(".")[2], flag.key):
            if flag.path != "gates" or known != "gates":
                found.setdefault(known, name)
    names = ("out", "force", "manifest", "scores", "plan", "limit", "grid", "name", "method")
    own = {name: f"--{name}" for name in names}
    other = {"gates": "--gate", "eval_contexts": "--eval-contexts", "max_batch": "--max-batch"}
    return found | own | other | {"settings": "--set", "blocks": "--blocks"}

"""Every flag that fills an option class, in one table: its name, the field it fills, its group and its help.

A flag has no default of its own: one that is not given leaves the field as its class has it, and `--help` shows that
default. The keys of a build file and the parameter names in error messages come from the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Any

import click

from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.tier_set import parse_rule
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions
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


class Group(StrEnum):
    """Under which title `--help` lists a flag."""

    EVERYDAY = "Everyday"
    DATA = "Data"
    PRECISION = "Precision"
    SERVING = "Serving"
    ROUNDING = "Rounding"
    SCORING = "Scoring"
    GATES = "Gates"
    MACHINE = "Machine"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Parameters
    ----------
    name : str
        With its dashes; ``--rows/--no-rows`` for one that can be turned off.
    path : str
        Field that it fills, with dots; `data.` begins those of `DataOptions`.
    group : Group
    help : str
    kind : click type, optional
        None: text.
    read : callable, optional
        Turns the value into that of the field.
    switch : bool
        Takes no value.
    several : bool
        May be repeated; the values are added to those of the field.
    metavar : str, optional
    """

    name: str
    path: str
    group: Group
    help: str
    kind: Any = None
    read: Callable[[Any], Any] | None = None
    switch: bool = False
    several: bool = False
    metavar: str | None = None

    @property
    def key(self) -> str:
        """The name in a build file and in the function of a command."""
        return self.name.partition("/")[0].removeprefix("--").replace("-", "_")

    @property
    def has_off(self) -> bool:
        """Whether it can be turned off."""
        return "/" in self.name


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return what reads a list of numbers, separated by commas; `none` for an empty one."""

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


D, P, S, R, C, G, M = (
    *(Group.DATA, Group.PRECISION, Group.SERVING, Group.ROUNDING),
    *(Group.SCORING, Group.GATES, Group.MACHINE),
)
_POSITIVE = click.IntRange(min=1)

ROLLOUT = Flag("--rollout", "data.rollout", D, "Rollout spec: how outputs re-enter as inputs.", FILE)
CONTEXTS = Flag(
    "--contexts",
    "data.contexts",
    D,
    "Scoring contexts: .npz, folder of .npy, or a table (.csv, .csv.gz).",
    FILE,
)
STEPS = Flag("--steps", "data.steps", D, "Model calls a rollout [default: the spec's].", _POSITIVE)
MAX_CONTEXTS = Flag("--max-contexts", "data.max_contexts", D, "At most so many scoring contexts.", _POSITIVE)
EVAL_CONTEXTS = Flag(
    "--eval-contexts",
    "data.evaluation",
    D,
    "Evaluation contexts [default: the test rows of the table].",
    FILE,
)
MAX_EVAL_CONTEXTS = Flag(
    "--max-eval-contexts", "data.max_eval_contexts", D, "At most so many evaluation contexts.", _POSITIVE
)
CALIBRATION = Flag(
    "--calibration",
    "data.calibration",
    D,
    "Contexts for rounding by data; for a table, its training rows [default: the scoring contexts].",
    FILE,
)
COMPRESSION = Flag(
    "--compression",
    "budget.compression",
    P,
    "Bytes of the input file over bytes of the output file.",
    click.FLOAT,
)
ROUNDING = Flag(
    "--rounding",
    "refine.rounding.method",
    R,
    "How integers are chosen: rtn, mse and unbiased see the weights alone, the others the contexts too.",
    click.Choice(METHODS),
)
PROFILE = Flag(
    "--profile",
    "profile",
    S,
    "Serving profile written into the file: fast, exact, or small (least memory).",
    click.Choice(PROFILES),
)
MAX_DRIFT = Flag(
    "--max-drift", "gates", G, "Fail (exit 3) when the drift is larger.", click.FLOAT, "drift<={}".format
)
PROVIDERS = Flag(
    "--providers",
    "run.provider",
    M,
    "Where the model runs; auto: CUDA where it works, else the CPU.",
    click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
)

DATA = (ROLLOUT, CONTEXTS, STEPS, MAX_CONTEXTS)
EVALUATION = (EVAL_CONTEXTS, MAX_EVAL_CONTEXTS)
BUDGET = (
    COMPRESSION,
    Flag(
        "--weight-compression",
        "budget.weight_compression",
        P,
        "Bytes of the weights in MODEL over theirs in the file, tables included.",
        click.FLOAT,
    ),
    Flag("--max-bytes", "budget.max_bytes", P, "Most bytes of the output file.", click.INT),
)
PLANNING = (
    Flag(
        "--objective",
        "plan.objective",
        P,
        "What the knapsack minimises [default: measured where --rounding uses data, else energy].",
        click.Choice([o.value for o in Objective]),
    ),
    Flag("--solver", "plan.solver", P, "Allocator.", click.Choice(["mckp", "greedy", "greedy-top"])),
    Flag(
        "--p-fp32",
        "plan.p_fp32",
        P,
        "Share of FP32 bytes protected [default: 0; paper: 0.02].",
        click.FloatRange(0, 1),
    ),
    Flag(
        "--gamma-min",
        "plan.gamma_min",
        P,
        "Weights with γ_task at or below it get the bottom tier.",
        click.FLOAT,
    ),
    Flag(
        "--tiers",
        "tiers.tiers",
        P,
        "Tiers allowed, e.g. FP32,BF16,INT8,INT4,INT2 [default: all but BF16].",
        read=parse_tiers,
    ),
    Flag(
        "--pin",
        "tiers.pins",
        P,
        "Weights by name that get these tiers only, e.g. 'head.*=INT8'. Repeatable.",
        read=lambda text: parse_rule(text, "pin"),
        several=True,
        metavar="PATTERN=TIERS",
    ),
    Flag(
        "--forbid",
        "tiers.bans",
        P,
        "Weights by name that do not get these tiers, e.g. '*.norm.*=INT2,INT1'. Repeatable.",
        read=lambda text: parse_rule(text, "forbid"),
        several=True,
        metavar="PATTERN=TIERS",
    ),
    Flag(
        "--max-fp32",
        "plan.max_fp32",
        P,
        "Most weights in FP32, one per block; others get 16 bits or fewer (the paper's cap on Pangu).",
        click.IntRange(min=0),
    ),
    Flag(
        "--tie",
        "plan.ties",
        P,
        "Weights by name that get one tier together, e.g. 'layers.0.*'. Repeatable.",
        several=True,
        metavar="PATTERN",
    ),
    Flag("--untie", "plan.untie", P, "Weights scored as a block may get different tiers.", switch=True),
    Flag(
        "--drop-outputs", "plan.drop_outputs", P, "Outputs outside the trajectory do not matter.", switch=True
    ),
    Flag(
        "--rows/--no-rows",
        "serving.rows",
        P,
        "Offer row tiers: channels of one weight at different widths, where that pays.",
        switch=True,
    ),
    Flag(
        "--groups",
        "serving.groups",
        P,
        "Offer matrices with a scale for so many values of a channel, e.g. 32,64.",
        read=numbers(int),
    ),
)
OPSET = Flag(
    "--opset", "serving.opset", S, "Convert the model first [default: its own opset].", click.IntRange(9, 25)
)
SERVING = (
    PROFILE,
    Flag(
        "--target",
        "serving.target",
        S,
        "What serves the file; ways to store a weight that it cannot serve are not offered.",
        click.Choice([t.value for t in ServingTarget]),
    ),
    Flag(
        "--encoding",
        "serving.encoding",
        S,
        "Integer tiers as bit planes (any width, from opset 9), or as ONNX's own INT8 and INT4.",
        click.Choice([e.value for e in Encoding]),
    ),
    OPSET,
    Flag(
        "--compute",
        "serving.compute.dtype",
        S,
        "Blocks compute with 16-bit floats, cast at their borders; bf16 needs --target ort-cuda or tensorrt.",
        click.Choice(["fp16", "bf16"]),
        _compute,
    ),
    Flag(
        "--compute-blocks",
        "serving.compute.blocks",
        S,
        r"Which blocks: a regular expression over labels and nodes, e.g. 'layers\.\d+' [default: all].",
    ),
    Flag(
        "--standard-ops",
        "serving.standard_ops",
        S,
        "ONNX's own operators only: none of onnxruntime's, such as MatMulNBits.",
        switch=True,
    ),
    Flag(
        "--keep-constants",
        "serving.constants",
        S,
        "Store masks, maps and index tables as they are.",
        read=lambda _: "keep",
        switch=True,
    ),
)
REFINING = (
    ROUNDING,
    Flag(
        "--repair",
        "refine.repair_rounds",
        R,
        "Rounds of joint repair: trial promotions and demotions, judged on scoring contexts set aside.",
        click.IntRange(min=0),
    ),
    Flag("--tune/--no-tune", "refine.tune", R, "Choose QEP's settings on contexts held out.", switch=True),
)
PROBE = Flag("--probe", "score.probe.kind", C, "Perturbation.", click.Choice([k.value for k in ProbeKind]))
SCORING = (
    PROBE,
    Flag("--probe-bits", "score.probe.bits", C, "Bits of the reference rounding.", click.IntRange(2, 8)),
    Flag(
        "--response-bits",
        "score.response_bits",
        C,
        "Further widths at which the response is measured, for the allocator; 'none' for none.",
        read=numbers(int),
    ),
    Flag("--draws", "score.probe.draws", C, "Draws of the gauss probe.", _POSITIVE),
    Flag("--seed", "score.probe.seed", C, "Seed of the gauss probe.", click.INT),
    Flag(
        "--per-channel",
        "score.probe.per_channel",
        C,
        "Probes round with one scale per channel, not per tensor.",
        switch=True,
    ),
    Flag(
        "--horizons",
        "score.horizons",
        C,
        "Steps at which γ is taken, e.g. 1,5,10 [default: a schedule up to --steps].",
        read=numbers(int),
    ),
    Flag("--units", "score.units", C, "Units of divergence.", click.Choice(["std", "raw"])),
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
        "Perturb a block's members at once, or take the mean of their own scores [default: joint].",
        click.Choice(["joint", "mean"]),
    ),
    Flag(
        "--early-stop",
        "score.early_stop.tolerance",
        C,
        "End a rollout when γ_task moves by no more than that over --early-window steps.",
        click.FloatRange(min=0, min_open=True),
    ),
    Flag("--early-window", "score.early_stop.window", C, "Steps of --early-stop [default: 3].", _POSITIVE),
    Flag(
        "--group-test",
        "score.group_test",
        C,
        "Settle families of weights that look dead by one rollout.",
        switch=True,
    ),
    Flag(
        "--dead-below",
        "score.dead_below",
        C,
        "Weights with γ_task at or below it are dead [paper: -50].",
        click.FLOAT,
    ),
    Flag(
        "--dead-at-minimum",
        "score.dead_at_minimum",
        C,
        "Weights below the floor that tie at the lowest γ_task are dead.",
        switch=True,
    ),
    Flag(
        "--role",
        "roles",
        C,
        "Role of the weights whose label matches a shell pattern, the last one counts: "
        f"{', '.join(Role)}. Repeatable.",
        several=True,
        metavar="PATTERN=ROLE",
    ),
)
ROLE = SCORING[-1]
RUN = (
    PROVIDERS,
    Flag("--batch", "run.batch", M, "Most contexts a call [default: 32].", _POSITIVE),
    Flag("--threads", "run.threads", M, "Threads a call; 0: the runtime's choice.", click.IntRange(min=0)),
)
ENGINE = (
    Flag(
        "--max-memory",
        "score.max_memory",
        M,
        "Megabytes that scoring may use; contexts are chunked to fit.",
        click.FloatRange(min=1),
        lambda megabytes: int(1e6 * megabytes),
    ),
    Flag(
        "--engine",
        "score.engine",
        M,
        "Who measures: this machine, or a Ray cluster (tqs-onnx[ray]).",
        click.Choice(["local", "ray"]),
    ),
    Flag(
        "--address",
        "score.address",
        M,
        "Head of the Ray cluster, HOST:PORT [default: this machine's cluster, else one started here].",
    ),
    Flag(
        "--workers",
        "score.workers",
        M,
        "Processes, or most actors on a cluster [default: 1, or as many as there is room for].",
        _POSITIVE,
    ),
)
GATES = (
    MAX_DRIFT,
    Flag(
        "--max-degradation",
        "gates",
        G,
        "Fail when the worst variable's MAE degrades more, in percent.",
        click.FLOAT,
        "degradation<={}".format,
    ),
    Flag(
        "--min-compression",
        "gates",
        G,
        "Fail when the file is larger than that.",
        click.FLOAT,
        "compression>={}".format,
    ),
    Flag(
        "--gate",
        "gates",
        G,
        "Any gate, e.g. 'drift:p95<=0.2', 'drift:variable=OT<=0.1', 'degradation:step=4<=5'. Repeatable.",
        several=True,
    ),
)
QUANTIZE = (
    *(*DATA, *EVALUATION, CALIBRATION, *BUDGET, *PLANNING, *SERVING, *REFINING, *SCORING, *GATES),
    *(*RUN, *ENGINE),
)
BASELINE = (
    Flag("--method", "rounding.method", R, "How integers are chosen.", click.Choice(METHODS)),
    Flag("--bits", "bits", R, "Width of every matrix.", click.IntRange(1, 8)),
    Flag(
        "--group",
        "group",
        R,
        "Values of a channel that share a scale; 0: all. Channels that it does not divide keep one.",
        click.IntRange(min=0),
    ),
    Flag("--damp", "rounding.damp", R, "Damping of GPTQ and GPTAQ.", click.FloatRange(min=0)),
    Flag(
        "--scales",
        "rounding.scales",
        R,
        "Scales that GPTQ, GPTAQ and QEP round on.",
        click.Choice(FREE_ROUNDINGS),
    ),
    Flag("--alpha", "rounding.alpha", R, "Strength of GPTAQ's correction.", click.FLOAT),
    Flag("--qep-damp", "rounding.qep_damp", R, "Damping of QEP, not tuned.", click.FloatRange(min=0)),
    Flag("--qep-strength", "rounding.qep_strength", R, "Strength of QEP, not tuned.", click.FLOAT),
    Flag("--act-order/--no-act-order", "rounding.act_order", R, "Most active inputs first.", switch=True),
    PROFILE,
    OPSET,
    *(*GATES, ROLE, *RUN),
)


def nested(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that flags fill, as nested dictionaries; what is not given is left out.

    Parameters
    ----------
    flags : iterable of Flag
    given : mapping of str to value
        By `Flag.key`, as click gives them: None, False and () stand for a flag that was not given.

    Raises
    ------
    InputError
        A text cannot be read; `where` is the name of the flag.
    """
    found: dict[str, Any] = {}
    for flag in flags:
        value = given.get(flag.key)
        if value is None or value == () or (value is False and not flag.has_off):
            continue
        values: list[Any] = [*value] if isinstance(value, tuple) else [value]
        try:
            read = [v if flag.read is None else flag.read(v) for v in values]
        except InputError as error:
            raise InputError(error.what, where=flag.name, todo=error.todo) from error
        *parents, last = flag.path.split(".")
        place = found
        for name in parents:
            place = place.setdefault(name, {})
        if flag.path == "gates" or flag.several:
            place[last] = [*place.get(last, []), *read]
        else:
            place[last] = read[0]
    return found


def default_of(
    flag: Flag, kind: type[QuantizeOptions] | type[BaselineOptions] = QuantizeOptions
) -> str | None:
    """Return the default that `--help` shows: that of the field; None where there is none to show."""
    if (flag.switch and not flag.has_off) or flag.path.startswith("data.") or "[default:" in flag.help:
        return None
    value: Any = kind()
    for name in flag.path.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    if value is None or value == ():
        return None
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value)
    if isinstance(value, bool):
        return flag.name.partition("/")[0 if value else 2].removeprefix("--")
    return str(value.value if isinstance(value, Enum) else value)


def field_paths(kind: object, prefix: str = "") -> list[str]:
    """Return the path of every field of an option class that holds no further fields, by its default value."""
    found: list[str] = []
    for field in fields(kind):  # type: ignore[arg-type]
        value = getattr(kind, field.name)
        path = f"{prefix}{field.name}"
        found += field_paths(value, f"{path}.") if is_dataclass(value) else [path]
    return found


def flags_by_parameter() -> dict[str, str]:
    """Return the name of the flag for every parameter that an error may name, by its key, field or path."""
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

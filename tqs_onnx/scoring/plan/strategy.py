"""Choose how weights are injected and which of them share a session: a cost model of the job that reads no clock.

With G sessions, n rollouts of T steps over k chunks, B bytes of matrices and b(·) the time to build a session, in
seconds ::

    expose(G) = G · b  +  (n + 3 · G) · (k · (T − s) · call · B + k · T · (lost · B / G + m))
    rebuild   = n · b  +  (n + 3) · k · T · call · B

`expose` pays for its sessions, for three rollouts in each (the nominal one and those of its floors), and at every
call for the exposed share of the matrices, which is not prepacked. `rebuild` pays only for one session per rollout,
so it is best for long rollouts. With `prefix`, sessions are split where their weights first matter. The first step then
saves the share s of a call before the split, (1 − 1/G)/2 on average, and every step takes two calls, where m is the
price of the second; without `prefix`, both are 0. It is considered for short rollouts only.

The rates were measured on a 76 MB transformer and on the zoo model (`tools/bench_sweep.py`). They depend on the
machine, but a choice that is slightly off costs little near a minimum, and the same job gets the same strategy
everywhere. The strategy is part of the job and stored with it.

On a GPU nothing is prepacked, and large models must not be held twice: everything is exposed.

Changing constants in place, in a session that prepares nothing, is not offered as a strategy: it has all disadvantages
of exposed weights, and an optimizer may have folded these constants into others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tqs_onnx.rollout.session import Provider
from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_passes.weights import Weight

How = Literal["expose", "rebuild"]

#: Seconds to build a session that shares its constants: per node, and per byte of matrices.
BUILD_NODE_S = 120e-6
BUILD_S = 0.5e-9
#: Seconds per byte of matrices: of one call, of one more context in it, and lost by a call when exposed.
CALL_S = 0.05e-9
CALL_PER_CONTEXT_S = 0.075e-9
LOST_S = 0.12e-9
#: Seconds that a call takes longer when it is made in two.
SECOND_CALL_S = 50e-6
#: Above this number of steps, a prefix saves too little to consider it.
MOST_PREFIX_STEPS = 4
#: Above this size, use one session with everything exposed: `rebuild` holds constants prepacked in two sessions.
MOST_CONSTANT_BYTES = 256 << 20
#: Rollouts of a session besides the perturbed ones: the nominal one and the two for its floors.
NOMINAL_ROLLOUTS = 3
_PREPACKED = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1}


@dataclass(frozen=True, slots=True)
class Shape:
    """Inputs of the cost model, besides the targets.

    Parameters
    ----------
    n_rollouts : int
        Perturbed rollouts per target.
    steps : int
        Steps of a rollout.
    chunks : int
        Model calls per step.
    chunk : int
        Contexts per call.
    nodes : int
        Nodes of the graph.
    provider : str
    """

    n_rollouts: int
    steps: int
    chunks: int
    chunk: int
    nodes: int
    provider: Provider


@dataclass(frozen=True, slots=True)
class Strategy:
    """How weights are injected.

    Parameters
    ----------
    how : {"expose", "rebuild"}
    groups : int
        Number of sessions of `expose`; 1 for `rebuild`.
    prefix : bool
        Split the sessions of `expose` where their weights first matter.
    """

    how: How
    groups: int
    prefix: bool = False


def prepacked_bytes(weight: Weight) -> int:
    """Return the bytes that kernels prepack at load when the weight is constant: those of matrices and kernels."""
    size = {"float64": 8, "float32": 4}.get(weight.dtype, 2)
    prepared = any(_PREPACKED.get(r.op_type) == r.input_index for r in weight.readers)
    return size * weight.n_values if prepared else 0


def choose(targets: Sequence[Perturbation], shape: Shape) -> Strategy:
    """Return the cheapest strategy for these targets."""
    n_bytes = sum(prepacked_bytes(w) for t in targets for w in t.weights)
    if shape.provider != "cpu" or n_bytes == 0 or n_bytes > MOST_CONSTANT_BYTES:
        return Strategy("expose", 1)
    build = shape.nodes * BUILD_NODE_S + n_bytes * BUILD_S
    n, calls = shape.n_rollouts * len(targets), shape.steps * shape.chunks
    call = n_bytes * (CALL_S + CALL_PER_CONTEXT_S * shape.chunk)

    def seconds(option: Strategy) -> float:
        if option.how == "rebuild":
            return n * build + (n + NOMINAL_ROLLOUTS) * calls * call
        groups = option.groups
        spared = shape.chunks * call * (1 - 1 / groups) / 2 if option.prefix else 0.0
        more = n_bytes * LOST_S / groups + (SECOND_CALL_S if option.prefix else 0.0)
        rollout = calls * (call + more) - spared
        return groups * build + (n + NOMINAL_ROLLOUTS * groups) * rollout

    options = [Strategy("expose", groups) for groups in range(1, len(targets) + 1)]
    if shape.steps <= MOST_PREFIX_STEPS:
        options += [Strategy("expose", groups, prefix=True) for groups in range(2, len(targets) + 1)]
    return min([*options, Strategy("rebuild", 1)], key=seconds)


def grouped(targets: Sequence[Perturbation], groups: int) -> tuple[tuple[Perturbation, ...], ...]:
    """Split the targets into at most `groups` consecutive runs with equal prepacked bytes, in the given order."""
    sizes = [sum(prepacked_bytes(w) for w in t.weights) for t in targets]
    total = sum(sizes)
    if total == 0:
        return (tuple(targets),)
    found: dict[int, list[Perturbation]] = {}
    before = 0
    for target, size in zip(targets, sizes, strict=True):
        middle = before + size / 2
        found.setdefault(min(groups - 1, int(middle * groups / total)), []).append(target)
        before += size
    return tuple(tuple(group) for _, group in sorted(found.items()))

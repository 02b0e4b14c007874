"""Which weights share a session: a cost model over the job, so that the answer never depends on the clock.

With G groups, n rollouts, c calls a rollout (steps × chunks) and B bytes of matrices, in seconds ::

    cost(G) = G · (build · B  +  c · call · B)  +  (n + G) · c · lost · B / G

building the sessions and their nominal rollouts, and what each call loses because the exposed share of the matrices
is not prepacked. The minimum is at G = sqrt(n · c · lost / (build + c · call)). The three rates were measured on a
76 MB transformer (`tools/bench_sweep.py`); they depend on the machine, but a choice that is somewhat off costs little
near a minimum, and the same job gets the same groups everywhere.

On a GPU nothing is prepacked: one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.rollout.session import Provider
from tqs_onnx.score.target import Target
from tqs_passes.weights import Weight

#: Seconds a byte of matrices: to build a session that shares its constants; of one call; lost by a call when exposed.
BUILD_S = 0.6e-9
CALL_S = 0.08e-9
CALL_PER_CONTEXT_S = 0.04e-9
LOST_S = 0.06e-9
_PREPACKED = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1}
#: Below so many bytes of matrices everything is in cache, and one session is best.
_SMALL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost model looks at.

    Parameters
    ----------
    n_rollouts : int
        Perturbed rollouts a target.
    calls : int
        Calls of the model a rollout.
    chunk : int
        Contexts a call.
    provider : str
    """

    n_rollouts: int
    calls: int
    chunk: int
    provider: Provider


def prepacked_bytes(weight: Weight) -> int:
    """Return the bytes that kernels prepare at load when the weight is constant: those of matrices and kernels."""
    size = {"float64": 8, "float32": 4}.get(weight.dtype, 2)
    prepared = any(_PREPACKED.get(r.op_type) == r.input_index for r in weight.readers)
    return size * weight.n_values if prepared else 0


def n_groups(targets: Sequence[Target], shape: Shape) -> int:
    """Return in how many sessions the targets are best scored."""
    n_bytes = sum(prepacked_bytes(w) for t in targets for w in t.weights)
    if shape.provider != "cpu" or n_bytes < _SMALL_BYTES:
        return 1
    lost = shape.n_rollouts * len(targets) * shape.calls * LOST_S
    fixed = BUILD_S + shape.calls * (CALL_S + CALL_PER_CONTEXT_S * shape.chunk)
    return max(1, min(len(targets), round(math.sqrt(lost / fixed))))


def grouped(targets: Sequence[Target], groups: int) -> tuple[tuple[Target, ...], ...]:
    """Return the targets in at most `groups` runs of equal prepacked bytes, in the order given."""
    sizes = [sum(prepacked_bytes(w) for w in t.weights) for t in targets]
    total = sum(sizes) or 1
    found: dict[int, list[Target]] = {}
    before = 0
    for target, size in zip(targets, sizes, strict=True):
        middle = before + size / 2
        found.setdefault(min(groups - 1, int(middle * groups / total)), []).append(target)
        before += size
    return tuple(tuple(group) for _, group in sorted(found.items()))

"""Make contexts without data, from the model's graph and its rollout spec.

    sizes ─▶ recipe of every input ─▶ draw ─▶ own rollout of states ─▶ rollout finite and bounded? ──yes──▶ contexts
                                       ▲                                      │ no
                                       └─────────── next attempt ─────────────┘

Each value is keyed by (seed, input, context) and drawn independently of the others; states are rolled out on the CPU
with one thread, in blocks of a fixed size, so that contexts do not depend on their number or on the serving machine's
threads. Histories of states and hidden states are the model's own steps for every context; of fields that become inputs
again, every fourth is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.made.draw import ATTEMPTS, draw
from tqs_onnx.rollout.made.recipe import Kind, Recipe, recipe
from tqs_onnx.rollout.made.request import InputScale, MadeRequest
from tqs_onnx.rollout.made.roll import Arrays, Roller, grown
from tqs_onnx.rollout.made.sizes import Shapes, found_sizes
from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.session import Session, open_session, resolve_provider
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.signature import ModelSignature, close_match
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model

#: Steps after which hidden states, and every fourth field, are the model's own.
WARM_UP = 8
_OWN_FIELDS = 4


def made_contexts_of(
    file: Path,
    model: Model,
    signature: ModelSignature,
    spec: RolloutSpec,
    request: MadeRequest,
    scales: Sequence[InputScale] = (),
    *,
    like: Contexts | None = None,
) -> Contexts:
    """Return made contexts of a model (see the module docstring).

    Parameters
    ----------
    file : Path
        The model, to roll out.
    model : Model
        The same, to read.
    signature : ModelSignature
    spec : RolloutSpec
        Checked against the model.
    request : MadeRequest
    scales : sequence of InputScale
        Units that take precedence over those of the graph.
    like : Contexts, optional
        Data whose sizes are taken, and whose units where the graph states none.

    Raises
    ------
    InputError
        A scale names no input, the sizes of an input cannot be found, the model does not run, or its rollouts stay
        neither finite nor bounded.
    """
    stated = _scales(scales, signature)
    session = _opened(file)
    shapes, tried = (
        found_sizes(spec, signature, lambda s: _failure(session, model, signature, spec, s, stated))
        if like is None
        else (_shapes_of(like, spec), {})
    )
    recipes = [recipe(p, shapes[p.name], model, spec, signature, stated, like) for p in signature.inputs]
    alone = spec.rollout.batch_axis is None or fixed_batch(spec, signature) == 1
    n = request.number(sum(_context_bytes(r, spec) for r in recipes), alone=alone)
    arrays = _Maker(session, spec, recipes, request.seed).arrays(n)
    sizes = "".join(f"; {name} = {size} (the first size that runs)" for name, size in tried.items())
    note = f"made {n} contexts (seed {request.seed}): {'; '.join(map(str, recipes))}{sizes}"
    return Contexts(arrays, {}, source=f"made:{n}:{request.seed}", made_seed=request.seed, notes=(note,))


def _shapes_of(contexts: Contexts, spec: RolloutSpec) -> Shapes:
    """Return the shape of one context of every input at one step."""
    return {name: a.shape[2 if name in spec.forced else 1 :] for name, a in contexts.arrays.items()}


def _context_bytes(recipe: Recipe, spec: RolloutSpec) -> int:
    n_values = math.prod(recipe.shape) * (spec.rollout.steps if recipe.is_forced else 1)
    return n_values * recipe.port.dtype.itemsize


def _scales(scales: Sequence[InputScale], signature: ModelSignature) -> dict[str, InputScale]:
    names = [p.name for p in signature.inputs if p.dtype.kind not in "iub"]
    for scale in scales:
        if scale.input not in names:
            todo = close_match(scale.input, names) or f"Its float inputs are: {', '.join(names) or 'none'}"
            raise InputError(
                f"the model has no float input {scale.input!r}", where="`input_scale`", todo=todo
            )
    return {s.input: s for s in scales}


def _opened(file: Path) -> Session:
    """Open the model on the CPU with one thread; on another provider only if the CPU lacks its kernels."""
    try:
        return open_session(file, provider="cpu", options=SessionOptions(threads=1))
    except InputError:
        provider = resolve_provider("auto")
        if provider == "cpu":
            raise
        return open_session(file, provider=provider, options=SessionOptions(threads=1))


def _failure(
    session: Session,
    model: Model,
    signature: ModelSignature,
    spec: RolloutSpec,
    shapes: Shapes,
    scales: Mapping[str, InputScale],
) -> InputError | None:
    """Return the error of a short rollout with contexts of these shapes, if it fails."""
    try:
        recipes = [recipe(p, shapes[p.name], model, spec, signature, scales) for p in signature.inputs]
        steps = min(2, spec.rollout.steps)
        arrays = {r.port.name: draw(r, 0, 0, steps)[None] for r in recipes}
        Roller(session, spec).explodes(arrays, steps)
    except InputError as error:
        return error
    return None


class _Maker:
    """Draws contexts and redraws those that explode."""

    def __init__(self, session: Session, spec: RolloutSpec, recipes: Sequence[Recipe], seed: int) -> None:
        self._recipes = recipes
        self._seed = seed
        self._spec = spec
        self._roller = Roller(session, spec)
        grows = "grow" in {*(f.mode for f in spec.feedback), *(f.mode for f in spec.fill)}
        kinds = {r.kind for r in recipes}
        histories = [r.shape[r.axis] for r in recipes if r.kind is Kind.HISTORY]
        self._all_own = not grows and (Kind.HIDDEN in kinds or bool(histories))
        some_own = (
            not grows and bool(spec.feedback) and not histories and Kind.SERIES not in self._fed_kinds()
        )
        self._warm = 0
        if self._all_own or some_own:
            self._warm = WARM_UP if some_own or Kind.HIDDEN in kinds else max(histories)

    def _fed_kinds(self) -> set[Kind]:
        fed = {f.input for f in self._spec.feedback}
        return {r.kind for r in self._recipes if r.port.name in fed}

    def arrays(self, n: int) -> Arrays:
        """Return the arrays of contexts 0 to n - 1.

        Raises
        ------
        InputError
            The rollout of a context explodes at every attempt.
        """
        found: Arrays = {}
        left = np.arange(n)
        for attempt in range(ATTEMPTS):
            made, bad = self._drawn(left, attempt)
            for name, array in made.items():
                found.setdefault(name, np.empty((n, *array.shape[1:]), array.dtype))[left] = array
            left = left[bad | self._roller.explodes(made)]
            if not len(left):
                return found
        raise InputError(
            f"the rollouts of {len(left)} of {n} made contexts do not stay finite and bounded",
            where="made contexts",
            todo="State the units of the inputs by `input_scale`, or give `contexts`",
        )

    def _drawn(self, indices: NDArray[np.int64], attempt: int) -> tuple[Arrays, NDArray[np.bool_]]:
        """Return the arrays of contexts at an attempt, and which exploded on the way to their states."""
        steps = self._warm + self._spec.rollout.steps
        whole = {
            r.port.name: np.stack([draw(r, self._seed, int(i), steps, attempt) for i in indices])
            for r in self._recipes
        }
        forced = self._spec.forced
        fresh: dict[str, NDArray[Any]] = {
            n: a[:, self._warm :] if n in forced else a for n, a in whole.items()
        }
        bad = np.zeros(len(indices), bool)
        own = np.array([self._all_own or i % _OWN_FIELDS == _OWN_FIELDS - 1 for i in indices])
        if not self._warm or not own.any():
            return fresh, bad
        rolled = self._roller.after({n: a[own] for n, a in whole.items()}, self._warm)
        for name, states in rolled.items():
            fresh[name] = fresh[name].copy()
            bad[own] |= grown(whole[name][own, 0] if name in forced else whole[name][own], states)
            if name in forced:
                fresh[name][own, 0] = states
            else:
                fresh[name][own] = states
        return fresh, bad

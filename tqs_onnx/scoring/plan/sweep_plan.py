"""The plan of a sweep: the perturbed targets, their sessions, and the digest under which results are stored.

It is a pure function of the job: resumed, shuffled, distributed and single runs have the same plan.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from tqs_onnx.rollout.contexts.context_set import Contexts, contexts_hash
from tqs_onnx.rollout.engine import DEFAULT_BATCH
from tqs_onnx.rollout.injection import exposable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.spec.check import fixed_batch
from tqs_onnx.rollout.spec.signature import signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.plan.blocks import blocks_of
from tqs_onnx.scoring.plan.fingerprint import job_facts, job_id
from tqs_onnx.scoring.plan.memory import memory_of
from tqs_onnx.scoring.plan.options import ScoreOptions, default_horizons, require_horizons
from tqs_onnx.scoring.plan.perturbation import Perturbation, Rollout, rollouts_of
from tqs_onnx.scoring.plan.strategy import How, Shape, choose, grouped
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.weights import Weight


@dataclass(frozen=True, slots=True, eq=False)
class SweepPlan:
    """The plan of a sweep (see module docstring).

    Parameters
    ----------
    model : Model
        Lifted model.
    spec : RolloutSpec
    contexts : Contexts
    options : ScoreOptions
    run : RunOptions
        Run options with a resolved provider, never `auto`.
    horizons : tuple of int
    batch : int
        Largest number of contexts in a chunk.
    how : {"expose", "rebuild"}
        How weights are injected.
    prefix : bool
        Whether the part before a session's weights is computed only once for the first step.
    groups : tuple of tuple of Perturbation
        The targets of each session.
    block_of : dict of str to str
        Maps a weight to its block; empty without blocks.
    facts : str
        Everything that measurements depend on, as JSON.
    job : str
        Digest of `facts`.
    most_held_bytes : int or None
        Host memory for the nominal rollout; None: no limit was given (see `tqs_onnx.rollout.held`).
    """

    model: Model
    spec: RolloutSpec
    contexts: Contexts
    options: ScoreOptions
    run: RunOptions
    horizons: tuple[int, ...]
    batch: int
    how: How
    prefix: bool
    groups: tuple[tuple[Perturbation, ...], ...]
    block_of: dict[str, str]
    facts: str
    job: str
    most_held_bytes: int | None = None

    def rollouts(self, target: Perturbation) -> tuple[Rollout, ...]:
        """Return the rollouts of a target: the probe's draws, then the response."""
        return rollouts_of(target.weights, self.options.probe, self.options.response_bits)

    @property
    def n_rollouts(self) -> int:
        """Number of perturbed rollouts of the whole sweep."""
        return sum(len(self.rollouts(t)) for group in self.groups for t in group)

    @property
    def n_sessions(self) -> int:
        """Number of sessions; one without targets when nothing is perturbed."""
        return max(1, len(self.groups))

    def targets_of(self, session: int) -> tuple[Perturbation, ...]:
        """Return the targets that are perturbed in a session."""
        return self.groups[session] if self.groups else ()

    def weights_of(self, session: int) -> tuple[Weight, ...]:
        """Return the weights that a session exposes."""
        return tuple(w for target in self.targets_of(session) for w in target.weights)


def on_trajectory(weight: Weight, spec: RolloutSpec) -> bool:
    """Return whether a weight reaches the trajectory, directly or through an output that is fed back."""
    wanted = {*spec.trajectory.outputs, *(f.output for f in spec.feedback)}
    return not wanted.isdisjoint(weight.outputs)


def plan_sweep(bed: Testbed, source_sha256: str, options: ScoreOptions) -> SweepPlan:
    """Return the plan of a sweep over every weight that reaches the trajectory.

    Parameters
    ----------
    bed : Testbed
        With the scoring contexts. Its sessions are not used: the plan says how weights are injected.
    source_sha256 : str
        Digest of the file that the model was read from.
    options : ScoreOptions

    Raises
    ------
    InputError
        The block rule is invalid or matches nothing, a horizon exceeds the number of steps, or an early stop is
        requested where it is impossible.
    """
    model, spec, contexts = bed.model, bed.spec, bed.contexts
    require_horizons(options.horizons, spec.rollout.steps)
    if options.early_stop is not None and spec.rollout.is_made_whole:
        raise InputError(
            "a rollout that is averaged or bounded as a whole cannot be stopped early",
            where="`early_stop`",
            todo="Leave it out, or remove flip_invariant and non_negative from rollout.toml",
        )
    rolled = tuple(w for w in bed.survey.weights if on_trajectory(w, spec))
    blocks = () if options.blocks is None else blocks_of(model, rolled, options.blocks.rule)
    block_of = {w.name: b.name for b in blocks for w in b.weights}
    joint = options.blocks is not None and options.blocks.score == "joint"
    targets = blocks if joint else tuple(Perturbation(w.name, (w,)) for w in rolled)
    chunk = 1 if spec.rollout.batch_axis is None else bed.run.batch or DEFAULT_BATCH
    chunk = min(chunk, contexts.n_contexts)
    fixed = fixed_batch(spec, signature_of(model.proto))
    most_held: int | None = None
    if bed.run.max_memory is not None:
        memory = memory_of(exposable(model, rolled), spec, contexts, targets)
        chunk = min(chunk, memory.most_contexts(bed.run.max_memory, at_least=fixed or 1))
        most_held = memory.room_for_nominal(bed.run.max_memory, fixed or chunk)
    chunk = fixed or chunk
    n_chunks = -(-contexts.n_contexts // chunk)
    shape = Shape(
        options.probe.n_draws + len(options.response_bits),
        spec.rollout.steps,
        n_chunks,
        chunk,
        len(model.proto.graph.node),
        bed.provider,
    )
    strategy = options.strategy or choose(targets, shape)
    groups = grouped(targets, strategy.groups) if targets else ()
    horizons = options.horizons or default_horizons(spec.rollout.steps)
    facts = job_facts(
        provider=bed.provider,
        source_sha256=source_sha256,
        rollout_sha256=content_hash(spec),
        contexts_sha256=contexts_hash(contexts),
        horizons=horizons,
        units=options.units,
        chunk=chunk,
        injection=strategy.how,
        prefix=strategy.prefix,
        groups=[[t.name for t in group] for group in groups],
        early_stop=None if options.early_stop is None else asdict(options.early_stop),
        group_test=options.group_test,
        # Averaged and bounded rollouts were once compared in float64; now as all others are.
        **({"postprocess": 2} if spec.rollout.is_made_whole else {}),
    )
    text = json.dumps(facts, sort_keys=True)
    return SweepPlan(
        *(model, spec, contexts, options, bed.run, horizons, chunk),
        *(strategy.how, strategy.prefix, groups, block_of, text, job_id(json.loads(text)), most_held),
    )

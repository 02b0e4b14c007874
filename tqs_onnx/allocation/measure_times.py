"""Measures the time that each form takes at the weights of one shape, in whole files of the model, interleaved.

    FP32 · unchanged · one file per (operator, shape, form), its members in that form · all in their fastest form

Times of single nodes in isolation mislead: weights are then warm in the cache, and fusions with neighbours are missing.
A file per shape measures all members at once, so that a small saving stands out from the noise; they share it evenly.
Shares of single files need not add up, so they are scaled to add up to that of the last file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from tqs_onnx.allocation.bare_plan import bare_plan
from tqs_onnx.allocation.file_size import FileSize
from tqs_onnx.allocation.times import TimedForm, TimeTable
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.engine import DEFAULT_BATCH
from tqs_onnx.rollout.session import runtime_version
from tqs_onnx.rollout.stopwatch import Laps, processor, race
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.timing import first_inputs, paired
from tqs_passes.encode.weight import Form
from tqs_passes.graph.readers import sole_readers
from tqs_passes.plan.candidates import Candidate, Menu
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.targets import Serving

#: Forms that differ from FP32 in what runs at every call; the others are folded at load.
_TIMED = (Form.DEQUANTIZE, Form.NBITS, Form.DYNAMIC, Form.STATIC)
#: Files that run side by side, besides FP32; each holds a session.
_AT_ONCE = 6
ROUNDS = 15
#: Seconds that one race takes at least; see `race`.
LEAST_S = 5.0
_SLOWEST, _FASTEST = 0.5, 2.0


def measure_times(
    source: Source,
    menus: Sequence[Menu],
    size: FileSize,
    profile: Profile,
    serving: Serving,
    bed: Testbed,
    rounds: int = ROUNDS,
) -> TimeTable:
    """Measure the table of a model (see module docstring).

    Parameters
    ----------
    source : Source
    menus : sequence of Menu
        Menus of all weights.
    size : FileSize
    profile : {"fast", "exact", "small"}
    serving : Serving
    bed : Testbed
        Gives the inputs, the batch, the threads and the provider.
    rounds : int
        Number of calls of every file, at least.

    Raises
    ------
    InputError
        A file does not load or run.
    """
    groups = _groups(source, menus)
    fixed = bed.fixed_batch
    batch = 1 if bed.spec.rollout.batch_axis is None else fixed or bed.run.batch or DEFAULT_BATCH
    feeds = {batch: first_inputs(bed.spec, bed.contexts, batch)}
    with tempfile.TemporaryDirectory(prefix="tqs-times-") as folder:

        def written(name: str, forms: Mapping[str, TimedForm]) -> Path:
            path = Path(folder) / f"{name}.onnx"
            chosen = [_finest(m, forms.get(m.weight.name)) for m in menus]
            emit(source.lifted, bare_plan(source, chosen, size, profile, serving), path)
            return path

        def raced(files: Mapping[str, Path]) -> dict[str, Laps]:
            every = {"fp32": source.path, **files}
            where = {"threads": bed.run.threads, "device": bed.run.device}
            return race(every, feeds, provider=bed.provider, rounds=rounds, least_s=LEAST_S, loads=0, **where)

        def ratio(found: Mapping[str, Laps], name: str) -> float:
            if bed.run.threads == 1:
                return paired(found[name].processor_s[batch], found["fp32"].processor_s[batch])
            return paired(found[name].wall_s[batch], found["fp32"].wall_s[batch])

        files = {"unchanged": written("unchanged", {})}
        files |= {
            f"g{i}": written(f"g{i}", dict.fromkeys(group.weights, group)) for i, group in enumerate(groups)
        }
        ratios: dict[str, float] = {}
        names = list(files)
        for start in range(0, len(names), _AT_ONCE):
            found = raced({n: files[n] for n in names[start : start + _AT_ONCE]})
            ratios |= {n: ratio(found, n) for n in names[start : start + _AT_ONCE]}
        # Without conversion the unchanged file computes what FP32 computes: a difference is noise.
        plain = serving.opset is None and serving.compute is None
        base = 1.0 if plain else ratios["unchanged"]
        timed = [
            group.model_copy(update={"share": (ratios[f"g{i}"] - base) / len(group.weights)})
            for i, group in enumerate(groups)
        ]
        best = _fastest(timed)
        found = raced({"unchanged": files["unchanged"], "best": written("best", best)})
        fp32_ms = 1000 * median(found["fp32"].wall_s[batch])
        checked = ratio(found, "best")
    summed = base + sum(t.share for t in timed for n in t.weights if best.get(n) is t)
    scale = (checked - base) / (summed - base) if summed < base and checked < base else 1.0
    scale = min(max(scale, _SLOWEST), _FASTEST)
    return TimeTable(
        source_sha256=source.sha256,
        processor=processor(),
        runtime=runtime_version(),
        provider=bed.provider,
        threads=bed.run.threads,
        batch=batch,
        rounds=rounds,
        fp32_ms=fp32_ms,
        base=base,
        forms=tuple(t.model_copy(update={"share": t.share * scale}) for t in timed),
        checked=checked,
        summed=summed,
    )


def _groups(source: Source, menus: Sequence[Menu]) -> list[TimedForm]:
    """Return the forms to time, each with the weights of one operator and shape that have it; shares are 0."""
    readers = sole_readers(source.lifted.proto.graph)
    shape_of = {m.weight.name: m.weight.shape for m in menus}
    found: dict[tuple[object, ...], TimedForm] = {}
    for menu in menus:
        name = menu.weight.name
        reader = readers.get(name)
        operator = "" if reader is None else reader.op_type
        shapes: tuple[object, ...] = (menu.weight.shape,)
        if reader is not None and operator == "LSTM":  # both matrices change together
            shapes = tuple(shape_of.get(stored) for stored in reader.input[1:3])
        for form in _TIMED:
            if any(c.assignment.form is form for c in menu.candidates):
                key = (form, operator, shapes)
                group = found.get(key, TimedForm(form=form, weights=(), share=0.0))
                found[key] = group.model_copy(update={"weights": (*group.weights, name)})
    return list(found.values())


def _finest(menu: Menu, wanted: TimedForm | None) -> Candidate:
    """Return the finest candidate of a form; without a form the finest of all."""
    chosen = [c for c in menu.candidates if wanted is None or wanted.covers(c.assignment)]
    return min(chosen or menu.candidates, key=lambda c: (c.assignment.error_energy, -c.assignment.n_bytes))


def _fastest(timed: Sequence[TimedForm]) -> dict[str, TimedForm]:
    """Return the fastest form of each weight for which one is faster than FP32."""
    best: dict[str, TimedForm] = {}
    for t in (t for t in timed if t.share < 0):
        for name in t.weights:
            if name not in best or t.share < best[name].share:
                best[name] = t
    return best

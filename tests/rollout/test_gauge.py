"""Squared differences of rollouts, made where the rollouts are, against those of whole trajectories in NumPy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest

from tests.rollout.test_engine import model, session_of, values
from tqs_onnx.rollout import held as holding
from tqs_onnx.rollout.contexts import shelf
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.distance import ruler_for
from tqs_onnx.rollout.engine import Engine, NonFiniteError, Squares
from tqs_onnx.rollout.held import Held, place_of
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import sigma
from tqs_passes.errors import InputError

ROLLOUT = "version = 1\n[rollout]\nsteps = 3\nbatch_axis = 0\n"
FED = '[[feedback]]\noutput = "y"\ninput = "x"\nmode = "replace"\n'
SHOWN = '[trajectory]\noutputs = ["y"]\n'
#: x' = 0.9 x + 0.1 c, c the weight.
PLAIN = (
    "(float[b, 2, 3] x, float[2, 3] c) => (float[b, 2, 3] y) <float w = {0.9}, float k = {0.1}> "
    "{ p = Mul(x, w)  q = Mul(c, k)  y = Add(p, q) }"
)


def weight(seed: int) -> np.ndarray:
    return values(2, 3, seed=seed)


def rolled(
    graph: str,
    spec: RolloutSpec,
    contexts: Contexts,
    batch: int | None = None,
    plain: np.ndarray | None = None,
    moved: np.ndarray | None = None,
) -> tuple[Engine, Held, Squares, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return an engine, its held rollout, the squares of a moved weight, and both trajectories."""
    engine = Engine(session_of(model(graph)), spec, contexts, batch=batch)
    before, after = (
        {"c": engine.session.value(w)}
        for w in (weight(1) if plain is None else plain, weight(2) if moved is None else moved)
    )
    held = engine.hold(before)
    nominal = engine.run(before).outputs
    np.testing.assert_array_equal(whole(engine.kept_pieces(held)), nominal["y"])
    return engine, held, engine.squares(held, after), nominal, engine.run(after).outputs


def whole(pieces: Iterable[Piece]) -> np.ndarray:
    """Put the pieces of output y together."""
    chunks: dict[int, list[np.ndarray]] = {}
    for piece in pieces:
        chunks.setdefault(piece.rows.start, []).append(piece.outputs["y"])
    return np.concatenate([np.concatenate(steps, 1) for steps in chunks.values()])


def assert_measured(
    spec: RolloutSpec, contexts: Contexts, graph: str = PLAIN, batch: int | None = None
) -> None:
    """Hold the squares of a rollout to those of its trajectory, for every variable."""
    _, held, squares, nominal, moved = rolled(graph, spec, contexts, batch)
    ruler = ruler_for(nominal, spec, contexts, sigma(spec, contexts, nominal).values)
    expected = ruler.squares(moved, nominal)
    made = ruler.parts(squares.outputs)
    assert list(made) == list(expected)
    assert squares.time_after == held.time_after
    for name, square in expected.items():
        assert square.max() > 1e-6
        # a float32 difference is off by 2⁻²⁴ of itself, its square by twice that
        np.testing.assert_allclose(made[name], square, rtol=1.2e-7)


@pytest.mark.parametrize("batch", [None, 2])
def test_squares_are_those_of_the_trajectories(batch: int | None) -> None:
    assert_measured(parse_spec(ROLLOUT + FED + SHOWN), Contexts({"x": values(5, 2, 3)}, {}), batch=batch)


def test_axes_that_tell_nothing_apart_are_summed_over() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    _, _, squares, _, _ = rolled(PLAIN, spec, Contexts({"x": values(5, 2, 3)}, {}))
    assert squares.outputs["y"].shape == (5, 3, 1, 1)
    assert squares.outputs["y"].dtype == np.float64


def test_variables_are_told_apart_by_their_axis() -> None:
    named = "".join(f'[[variable]]\nname = "v{i}"\noutput = "y"\naxis = 1\nindex = {i}\n' for i in range(2))
    spec = parse_spec(ROLLOUT + FED + SHOWN + named)
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    assert_measured(spec, contexts)
    assert rolled(PLAIN, spec, contexts)[2].outputs["y"].shape == (5, 3, 2, 1)


def test_columns_of_a_table_are_told_apart() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    assert_measured(spec, Contexts({"x": values(5, 2, 3)}, {}, columns=("a", "b", "c")))


def test_one_column_is_not_mistaken_for_an_axis_that_was_summed_over() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    assert_measured(spec, Contexts({"x": values(5, 2, 3)}, {}, columns=("a",)))


def test_series_are_told_apart() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    assert_measured(spec, Contexts({"x": values(5, 2, 3)}, {}, series=("u", "v", "u", "u", "v")), batch=2)


@pytest.mark.parametrize("length", [5, 6])
def test_a_time_axis_stays_and_is_cut_to_the_length(length: int) -> None:
    head = ROLLOUT.replace("batch_axis", f"length = {length}\nbatch_axis")
    spec = parse_spec(head + FED + SHOWN + "time_axis = 1\n")
    _, _, squares, _, _ = rolled(PLAIN, spec, Contexts({"x": values(5, 2, 3)}, {}))
    assert squares.outputs["y"].shape == (5, length, 1)
    assert_measured(spec, Contexts({"x": values(5, 2, 3)}, {}))


def test_what_is_not_selected_counts_for_nothing() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN + "[[trajectory.select]]\naxis = 2\nindex = 1\n")
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    assert_measured(spec, contexts)
    moved = weight(1)
    moved[:, 0] = np.nan
    squares = rolled(PLAIN, spec, contexts, moved=moved)[2]
    assert not squares.outputs["y"].any()


def test_a_model_without_a_batch_axis() -> None:
    graph = PLAIN.replace("float[b, 2, 3]", "float[2, 3]")
    spec = parse_spec(ROLLOUT.replace("batch_axis = 0\n", "") + FED + SHOWN)
    assert_measured(spec, Contexts({"x": values(4, 2, 3)}, {}), graph)


def test_a_batch_of_fixed_size_is_padded_and_cut_again() -> None:
    graph = PLAIN.replace("float[b, 2, 3]", "float[4, 2, 3]")
    assert_measured(parse_spec(ROLLOUT + FED + SHOWN), Contexts({"x": values(6, 2, 3)}, {}), graph)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double", "int32"])
def test_outputs_of_other_types_are_compared_in_full(dtype: str) -> None:
    code = {"float16": 10, "bfloat16": 16, "double": 11, "int32": 6}[dtype]
    graph = PLAIN.replace("(float[b, 2, 3] y)", f"(float[b, 2, 3] z, {dtype}[b, 2, 3] y)")
    graph = graph.replace("y = Add(p, q)", f"z = Add(p, q)  t = Mul(z, hundred)  y = Cast <to = {code}> (t)")
    graph = graph.replace("float w", "float hundred = {100.0}, float w")
    spec = parse_spec(ROLLOUT + FED.replace('"y"', '"z"') + SHOWN)
    assert_measured(spec, Contexts({"x": values(5, 2, 3)}, {}), graph)


def test_a_double_is_not_rounded_before_it_is_compared() -> None:
    graph = PLAIN.replace("float", "double")
    plain = weight(1).astype(np.float64)
    spec = parse_spec(ROLLOUT.replace("steps = 3", "steps = 1") + FED + SHOWN)
    contexts = Contexts({"x": values(2, 2, 3).astype(np.float64)}, {})
    _, _, squares, _, _ = rolled(graph, spec, contexts, plain=plain, moved=plain + 1e-11)
    np.testing.assert_allclose(squares.outputs["y"].sum(axis=(2, 3)), 6e-24, rtol=1e-2)


def test_a_value_that_is_not_finite_is_found_with_its_place() -> None:
    named = "".join(f'[[variable]]\nname = "v{i}"\noutput = "y"\naxis = 1\nindex = {i}\n' for i in range(2))
    spec = parse_spec(ROLLOUT + FED + SHOWN + named)
    engine = Engine(session_of(model(PLAIN)), spec, Contexts({"x": values(5, 2, 3)}, {}), batch=2)
    held = engine.hold({"c": engine.session.value(weight(1))})
    moved = weight(1)
    moved[1, 2] = np.inf
    with pytest.raises(NonFiniteError, match="'v1' is NaN or infinite") as caught:
        engine.squares(held, {"c": engine.session.value(moved)})
    assert (caught.value.step, caught.value.context) == (1, 0)


def test_a_watch_sees_the_squares_of_each_step_and_stops_all_chunks() -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    engine = Engine(session_of(model(PLAIN)), spec, Contexts({"x": values(5, 2, 3)}, {}), batch=2)
    held = engine.hold({"c": engine.session.value(weight(1))})
    moved = {"c": engine.session.value(weight(2))}
    whole = engine.squares(held, moved).outputs["y"]
    seen: list[np.ndarray] = []

    def watch(step: int, squares: dict[str, np.ndarray]) -> bool:
        seen.append(squares["y"])
        return step == 2

    stopped = engine.squares(held, moved, watch=watch)
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), whole[:2, :2])
    np.testing.assert_array_equal(stopped.outputs["y"], whole[:, :2])
    assert stopped.time_after == (0, 1, 2)


def test_an_engine_of_another_session_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    engine, held, squares, _, _ = rolled(PLAIN, spec, contexts)
    opened: list[object] = []
    monkeypatch.setattr("tqs_onnx.rollout.feedback.open_session", lambda *a, **k: opened.append(a))
    other = engine.of(session_of(model(PLAIN)))
    again = other.squares(held, {"c": other.session.value(weight(2))})
    np.testing.assert_array_equal(again.outputs["y"], squares.outputs["y"])
    assert not opened


class _Remote(Session):
    """A session whose values are said to lie on a device: reading one is counted."""

    @property
    def on_host(self) -> bool:
        return False


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the values that were copied to the host."""
    sizes: list[int] = []
    plain = Value.numpy

    def counted(self: Value) -> np.ndarray:
        sizes.append(self.n_bytes)
        return plain(self)

    monkeypatch.setattr(Value, "numpy", counted)
    return sizes


def remote(proto: onnx.ModelProto) -> _Remote:
    session = session_of(proto)
    return _Remote(session._raw, session.provider)


def test_only_sums_come_to_the_host_and_only_at_the_end(
    monkeypatch: pytest.MonkeyPatch, read_bytes: list[int]
) -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    expected = rolled(PLAIN, spec, contexts)[2].outputs["y"]
    engine = Engine(remote(model(PLAIN)), spec, contexts)
    held = engine.hold({"c": engine.session.value(weight(1))})
    moved = {"c": engine.session.value(weight(2))}
    read_bytes.clear()
    calls: list[int] = []
    plain = Session.run

    def counted(self: Session, *given: object, **more: object) -> object:
        calls.append(len(read_bytes))
        return plain(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", counted)
    squares = engine.squares(held, moved).outputs["y"]
    assert read_bytes == [5 * 8] * 3  # a float64 a context, one step after the other
    assert len(calls) == 3 * 2
    assert not any(calls)
    np.testing.assert_array_equal(squares, expected)


def test_a_rollout_too_big_for_the_device_is_held_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    kept: list[bool] = []
    for bound in (3 * 3 * 48, 3 * 3 * 48 - 1):  # three chunks of two contexts, three steps
        monkeypatch.setattr(holding, "MOST_DEVICE_BYTES", bound)
        engine = Engine(remote(model(PLAIN)), spec, contexts, batch=2)
        held = engine.hold({"c": engine.session.value(weight(1))})
        kept.append(held.store.where == "device")
        squares = engine.squares(held, {"c": engine.session.value(weight(2))})
        np.testing.assert_array_equal(squares.outputs["y"], rolled(PLAIN, spec, contexts, 2)[2].outputs["y"])
    assert kept == [True, False]


def test_a_held_rollout_lies_where_there_is_room_for_all_its_steps() -> None:
    gib = 1 << 30
    assert place_of(8 * gib, on_host=False) == "device"
    assert place_of(8 * gib + 1, on_host=False, most_bytes=9 * gib) == "memory"
    assert place_of(9 * gib + 1, on_host=False, most_bytes=9 * gib) == "file"
    assert place_of(5, on_host=True, most_bytes=5) == "device"  # the CPU's memory is its device
    assert place_of(6, on_host=True, most_bytes=5) == "file"
    assert place_of(0, on_host=True, most_bytes=0) == "device"


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16", "double"])
@pytest.mark.parametrize("on_host", [True, False])
def test_a_rollout_in_a_file_gives_the_bits_of_one_in_memory(dtype: str, on_host: bool) -> None:
    code = {"float": 1, "float16": 10, "bfloat16": 16, "double": 11}[dtype]
    graph = PLAIN.replace("(float[b, 2, 3] y)", f"(float[b, 2, 3] z, {dtype}[b, 2, 3] y)")
    graph = graph.replace("y = Add(p, q)", f"z = Add(p, q)  y = Cast <to = {code}> (z)")
    spec = parse_spec(ROLLOUT + FED.replace('"y"', '"z"') + SHOWN)
    contexts = Contexts({"x": values(5, 2, 3)}, {})
    session = session_of(model(graph)) if on_host else remote(model(graph))
    engine = Engine(session, spec, contexts, batch=2)
    before, after = ({"c": session.value(weight(i))} for i in (1, 2))
    memory, file = engine.hold(before), engine.hold(before, most_bytes=0)
    if not on_host:
        assert memory.store.where == "device"
        return
    assert (memory.store.where, file.store.where) == ("device", "file")
    assert file.shapes == memory.shapes == {"y": (5, 3, 2, 3)}
    assert whole(engine.kept_pieces(file)).tobytes() == whole(engine.kept_pieces(memory)).tobytes()
    made = [engine.squares(held, after).outputs["y"].tobytes() for held in (memory, file, memory, file)]
    assert len(set(made)) == 1


def test_a_value_that_is_not_finite_is_found_on_a_device_by_its_sums(read_bytes: list[int]) -> None:
    spec = parse_spec(ROLLOUT + FED + SHOWN)
    engine = Engine(remote(model(PLAIN)), spec, Contexts({"x": values(5, 2, 3)}, {}), batch=2)
    engine.hold({"c": engine.session.value(weight(1))})
    assert max(read_bytes) == 2 * 8  # a float64 a context
    moved = weight(1)
    moved[1, 2] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        engine.hold({"c": engine.session.value(moved)})
    assert (caught.value.step, caught.value.context) == (1, 0)


def test_where_no_temporary_file_can_be_written_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", full)
    engine = Engine(
        session_of(model(PLAIN)), parse_spec(ROLLOUT + FED + SHOWN), Contexts({"x": values(5, 2, 3)}, {})
    )
    with pytest.raises(InputError, match=r"temporary file \(No space left on device\)") as caught:
        engine.hold({"c": engine.session.value(weight(1))}, most_bytes=0)
    assert "TMPDIR" in caught.value.todo


def test_where_no_folder_takes_temporary_files_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf.tempfile, "tempdir", None)
    monkeypatch.setattr(shelf.tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    with pytest.raises(InputError, match="No usable temporary directory"):
        holding.Store(8, on_host=True, most_bytes=0)

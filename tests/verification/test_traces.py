"""Traces: the forecasts of a few contexts, as they were rolled out."""

import numpy as np
import pytest

from tests.rollouts import bed_of, linear, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.verification.traces import Tracer, read_traces
from tqs_passes.errors import InputError

STEPS = 4
CONTEXTS = Contexts(
    {"x": values(5, 3, seed=1)}, {"y": values(5, STEPS, 3, seed=2)}, ("p", "<b>", "p", "p", "<b>")
)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    source = opened(tmp_path_factory.mktemp("traces"), linear(np.float32(0.9 * np.eye(3))))
    return bed_of(source, spec_of(STEPS), CONTEXTS, batch=2), source.path


def traced(bed, wanted):
    where, path = bed
    tracer = Tracer(where.spec, where.contexts, wanted)
    for piece in where.stream_file(path)():
        tracer.add(piece, piece)
    return tracer


def test_a_trace_is_the_rollout_of_its_contexts(bed, tmp_path) -> None:
    traced(bed, 5).write(tmp_path / "traces.npz")
    traces, after = read_traces(tmp_path / "traces.npz")
    assert after == (0, 1, 2, 3, 4)
    assert traces["<b>"].contexts == (1, 4)
    whole = bed[0].roll_file(bed[1]).outputs["y"]
    assert np.array_equal(traces["<b>"].fp32, whole[[1, 4]])
    assert np.array_equal(traces["p"].truth, CONTEXTS.truth["y"][[0, 2, 3]].astype(np.float32))


def test_asked_for_two_contexts_it_keeps_one_of_each_series(bed) -> None:
    kept = traced(bed, 2).arrays()
    assert [len(kept[f"contexts/{i}"]) for i in range(2)] == [1, 1]


def test_none_are_kept_if_none_are_wanted_and_an_old_file_goes(bed, tmp_path) -> None:
    (tmp_path / "traces.npz").write_bytes(b"old")
    traced(bed, 0).write(tmp_path / "traces.npz")
    assert not (tmp_path / "traces.npz").exists()


def test_the_same_forecasts_give_the_same_bytes(bed, tmp_path) -> None:
    for name in "ab":
        traced(bed, 3).write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_file_holds_no_traces(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(2))
    with pytest.raises(InputError, match="holds no traces"):
        read_traces(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"fp32/0": a["fp32/0"][:-1]},
        lambda a: {"truth/1": a["truth/1"][..., None]},
        lambda a: {"file/0": a["file/0"].astype(str)},
        lambda a: {"time_after": np.array([0, 99])},
        lambda a: {"time_after": np.zeros(0, int)},
        lambda a: {"variables": np.array(["a", "b", "c"])},
    ],
)
def test_arrays_that_do_not_fit_each_other_hold_no_traces(bed, tmp_path, change) -> None:
    arrays = traced(bed, 5).arrays()
    np.savez(tmp_path / "x.npz", **(arrays | change(arrays)))
    with pytest.raises(InputError, match="holds no traces"):
        read_traces(tmp_path / "x.npz")


@pytest.mark.parametrize("method", [1, 99])
def test_a_damaged_archive_of_traces_is_one_line(bed, tmp_path, method) -> None:
    traced(bed, 5).write(tmp_path / "x.npz")
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 10] = method  # of compression
    (tmp_path / "x.npz").write_bytes(raw)
    with pytest.raises(InputError, match=r"cannot be read as NumPy arrays.*Run tqs verify again"):
        read_traces(tmp_path / "x.npz")

import contextlib
import gc
import io

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tqs_onnx.rollout.session import (
    PROVIDERS,
    SessionOptions,
    available_providers,
    host_value,
    open_session,
    probe_provider,
    runtime_version,
)
from tqs_passes.errors import InputError

ONE_THREAD = SessionOptions(threads=1)


def model(graph: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')


def doubling() -> bytes:
    return model("(float[n] x) => (float[n] y) { y = Add(x, x) }").SerializeToString()


def cuda_works() -> bool:
    return probe_provider("cuda") is None


def test_outputs_stay_as_they_were_after_further_runs():
    session = open_session(doubling(), options=ONE_THREAD)
    first = session.value(np.ones(4, np.float32))
    chain = [first]
    for _ in range(5):
        chain.append(session.run({"x": chain[-1]})["y"])
    gc.collect()
    assert [float(v.numpy()[0]) for v in chain] == [1, 2, 4, 8, 16, 32]


def test_an_array_outlives_its_value():
    session = open_session(doubling(), options=ONE_THREAD)
    array = session.run({"x": session.value(np.full(1000, 3, np.float32))})["y"].numpy()
    gc.collect()
    for _ in range(50):
        session.run({"x": session.value(np.zeros(1000, np.float32))})
    assert (array == 6).all()


def test_an_array_that_is_not_contiguous_keeps_its_values():
    session = open_session(doubling(), options=ONE_THREAD)
    array = np.arange(12, dtype=np.float32)[::3]
    value = session.value(array)
    gc.collect()
    np.testing.assert_array_equal(session.run({"x": value})["y"].numpy(), array * 2)


def test_a_scalar_keeps_its_shape():
    session = open_session(
        model("(float x) => (float y) { y = Neg(x) }").SerializeToString(), options=ONE_THREAD
    )
    assert session.run({"x": session.value(np.array(2, np.float32))})["y"].numpy().shape == ()


def test_bfloat16_goes_in_and_comes_out():
    graph = "(bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"
    session = open_session(model(graph).SerializeToString(), options=ONE_THREAD)
    array = np.array([1.5, -2.25, 0.0], ml_dtypes.bfloat16)
    result = session.run({"x": session.value(array)})["y"].numpy()
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result, array)


def test_the_signature_comes_from_the_runtime():
    session = open_session(doubling(), options=ONE_THREAD)
    assert str(session.signature.inputs[0]) == "'x' float32 [n]"


def test_only_the_outputs_asked_for_come_back():
    graph = "(float[n] x) => (float[n] y, float[n] z) { y = Neg(x)  z = Abs(x) }"
    session = open_session(model(graph).SerializeToString(), options=ONE_THREAD)
    assert list(session.run({"x": session.value(np.ones(1, np.float32))}, ["z"])) == ["z"]


@pytest.mark.parametrize("optimize", ["all", "extended", "basic", "disable"])
def test_every_optimization_level_runs(optimize):
    session = open_session(doubling(), options=SessionOptions(threads=1, optimize=optimize))
    assert session.run({"x": session.value(np.ones(1, np.float32))})["y"].numpy()[0] == 2


def test_config_entries_are_taken():
    options = SessionOptions(threads=1, config={"session.disable_quant_qdq": "1"})
    assert open_session(doubling(), options=options).provider == "cpu"


def test_bytes_that_are_no_model_are_one_line():
    with pytest.raises(
        InputError, match="the model does not load: Failed to load model because protobuf"
    ) as caught:
        open_session(b"not a model")
    assert "\n" not in str(caught.value)


def test_a_model_the_runtime_rejects_is_named_by_its_file(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(model("(float[n] x) => (float[n] y) { y = NoSuchOperator(x) }").SerializeToString())
    with pytest.raises(InputError, match=r"bad\.onnx: the model does not load: .*NoSuchOperator"):
        open_session(path)


def test_a_failing_run_names_where(capfd):
    session = open_session(
        model("(float[n] x) => (float[2] y) <int64[1] s = {2}> { y = Reshape(x, s) }").SerializeToString()
    )
    with pytest.raises(InputError, match=r"^step 7: the model failed: .*Reshape"):
        session.run({"x": session.value(np.ones(3, np.float32))}, where="step 7")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_input_is_an_input_error():
    session = open_session(doubling(), options=ONE_THREAD)
    with pytest.raises(InputError, match=r"the model failed: .*input name"):
        session.run({"z": session.value(np.ones(3, np.float32))})


def test_a_wrong_type_is_an_input_error():
    session = open_session(doubling(), options=ONE_THREAD)
    with pytest.raises(InputError, match=r"the model failed: .*data type"):
        session.run({"x": session.value(np.ones(3, np.float64))})


def stored_outside(folder) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    proto = model("(float[1024] x) => (float[1024] y) { y = Add(x, w) }")
    proto.graph.initializer.append(weight)
    onnx.save_model(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


def test_external_data_is_found_beside_a_path(tmp_path):
    stored_outside(tmp_path)
    session = open_session(tmp_path / "m.onnx", options=ONE_THREAD)
    assert session.run({"x": session.value(np.zeros(1024, np.float32))})["y"].numpy()[-1] == 1023


def test_external_data_of_bytes_is_found_in_a_folder(tmp_path):
    raw = stored_outside(tmp_path).SerializeToString()
    session = open_session(raw, options=ONE_THREAD, folder=tmp_path)
    assert session.run({"x": session.value(np.zeros(1024, np.float32))})["y"].numpy()[-1] == 1023


def test_the_cpu_is_available_and_works():
    assert "cpu" in available_providers()
    assert probe_provider("cpu") is None


def test_every_probe_answers_without_printing(capfd):
    answers = {p: probe_provider(p) for p in PROVIDERS}
    assert all(a is None or a for a in answers.values())
    assert capfd.readouterr() == ("", "")


def test_an_unknown_provider_is_an_input_error():
    with pytest.raises(InputError, match="unknown provider 'tpu'"):
        open_session(doubling(), provider="tpu")


def test_cuda_that_does_not_work_is_an_error_and_no_fallback():
    if cuda_works():
        pytest.skip("CUDA works here")
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        pytest.raises(InputError, match=r"cuda was requested but .*set `provider` to cpu"),
    ):
        open_session(doubling(), provider="cuda")
    assert out.getvalue() == ""


def test_auto_takes_what_works():
    assert open_session(doubling(), provider="auto").provider == ("cuda" if cuda_works() else "cpu")


def test_values_stay_on_a_cuda_device():
    if not cuda_works():
        pytest.skip("needs a CUDA device")
    session = open_session(doubling(), provider="cuda")
    value = session.value(np.ones(4, np.float32))
    for _ in range(3):
        value = session.run({"x": value})["y"]
    assert value.raw.device_name() == "cuda"
    np.testing.assert_array_equal(value.numpy(), np.full(4, 8, np.float32))


def test_the_runtime_has_a_version():
    assert runtime_version()[0].isdigit()


def test_what_is_read_from_a_value_outlives_it():
    """The runtime's own view of a shared array would not: what is freed is soon written over."""
    array = host_value(np.full(1000, 3, np.float32)).numpy()
    others = [np.full(1000, float(i), np.float32) for i in range(50)]
    assert len(others) == 50
    assert (array == 3).all()

import pytest
from onnx import parser

from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.signature import ModelSignature, port, signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash, load_spec, parse_spec
from tqs_passes.errors import InputError

SPEC = """
version = 1
[rollout]
steps = 4
length = 500
batch_axis = 0
[[feedback]]
output = "forecast"
input = "context"
mode = "grow"
axis = 1
select = {axis = 2, index = 5}
[[fill]]
input = "mask"
value = false
axis = 1
length = 128
[trajectory]
outputs = ["forecast"]
time_axis = 1
select = {axis = 2, index = 5}
"""


def signature(text: str) -> ModelSignature:
    return signature_of(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text} {{}}'))


FORECAST = "(float[b, n] context, bool[b, n] mask) => (float[b, 128, 10] forecast, float[b, 1024, 10] head)"


def read_and_check(text: str, ports: str | None) -> None:
    spec = parse_spec(text)
    if ports is not None:
        check_spec(spec, signature(ports))


def error_of(text: str, ports: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_and_check(text, ports)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_spec_keeps_what_the_file_says():
    spec = parse_spec(SPEC)
    assert spec.rollout.steps == 4
    assert spec.feedback[0].select[0].index == 5
    assert spec.fill[0].value is False
    assert spec.inputs == ("context", "mask")


def test_a_spec_is_read_from_a_file(tmp_path):
    path = tmp_path / "rollout.toml"
    path.write_text(SPEC)
    assert load_spec(path) == parse_spec(SPEC)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 4", "stepz = 4", "rollout.stepz: unknown key. Did you mean 'steps'?"),
        ("[[fill]]", "[[fil]]", "fil: unknown key. Did you mean 'fill'?"),
        ("index = 5}\n[[", "idx = 5}\n[[", "feedback[0].select[0].idx: unknown key"),
        ("steps = 4", "steps = '4'", "rollout.steps: Input should be a valid integer (got '4')"),
        ("steps = 4", "steps = true", "rollout.steps: Input should be a valid integer"),
        ("steps = 4", "steps = 0", "rollout.steps: Input should be greater than or equal to 1"),
        ("steps = 4\n", "", "rollout.steps: this key is missing"),
        ("steps = 4", "steps = ", "is not valid TOML"),
        ("version = 1", "version = 2", "version: Input should be 1 (got 2)"),
        (
            '"grow"',
            '"append"',
            "feedback[0].mode: Input should be 'replace', 'shift' or 'grow' (got 'append')",
        ),
        (
            "axis = 1\nselect",
            "select",
            "feedback[0]: axis is required for shift and grow, and not allowed for replace",
        ),
        ("{axis = 2, index = 5}", "{axis = 2}", "needs either index, or start and/or stop"),
        ("{axis = 2, index = 5}", "{axis = 2, index = 5, stop = 6}", "needs either index, or start"),
        (
            "{axis = 2, index = 5}",
            "[{axis = 2, stop = 5}, {axis = 2, index = 0}]",
            "select cuts one axis twice",
        ),
        ("axis = 1\nselect", "axis = 1\nscale = [1, 2]\noffset = [1, 2, 3]\nselect", "different lengths"),
        ("axis = 1\nselect", "axis = 1\nscale = []\nselect", "feedback[0].scale"),
        ("axis = 1\nselect", "axis = 1\nscale = ['a']\nselect", "feedback[0].scale[0]"),
        (
            "axis = 1\nselect",
            "axis = 1\ninto = {axis = 1, stop = 2}\nselect",
            "into cannot be combined with grow",
        ),
        (
            "axis = 1\nselect",
            "axis = -1\nselect",
            "feedback[0].axis: Input should be greater than or equal to 0",
        ),
        ("value = false", "value = 'no'", "fill[0].value: Input should be a number (got 'no')"),
        ('outputs = ["forecast"]', "outputs = []", "trajectory.outputs"),
        ('outputs = ["forecast"]', 'outputs = ["forecast", "forecast"]', "an output is named twice"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_key(old, new, expected):
    assert old in SPEC
    assert expected in error_of(SPEC.replace(old, new, 1))


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_spec(tmp_path / "none.toml")


def test_a_binary_file_is_an_input_error(tmp_path):
    path = tmp_path / "rollout.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_spec(path)


def test_the_error_names_the_file(tmp_path):
    path = tmp_path / "rollout.toml"
    path.write_text("version = 3")
    with pytest.raises(InputError, match=r"rollout\.toml: "):
        load_spec(path)


def test_the_hash_ignores_layout_and_spelled_out_defaults():
    other = SPEC.replace("value = false", "mode = 'grow'  # said\nvalue = false")
    assert content_hash(parse_spec(SPEC)) == content_hash(parse_spec(other))


def test_the_hash_sees_a_changed_number():
    assert content_hash(parse_spec(SPEC)) != content_hash(parse_spec(SPEC.replace("500", "499")))


def test_fewer_steps_drop_the_length():
    spec = parse_spec(SPEC).with_steps(2)
    assert (spec.rollout.steps, spec.rollout.length) == (2, None)


def test_more_steps_keep_the_length():
    assert parse_spec(SPEC).with_steps(5).rollout.length == 500


def test_steps_below_one_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        parse_spec(SPEC).with_steps(0)


def test_a_fitting_spec_passes_the_check():
    check_spec(parse_spec(SPEC), signature(FORECAST))


VARIABLE = '\n[[variable]]\nname = "t2m"\noutput = "forecast"\n'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('input = "context"', 'input = "contxt"', "no input 'contxt'. Did you mean 'context'?"),
        (
            'output = "forecast"',
            'output = "nothing"',
            "feedback[0].output: the model has no output 'nothing'",
        ),
        ('outputs = ["forecast"]', 'outputs = ["x"]', "trajectory.outputs: the model has no output 'x'"),
        ("[[fill]]", '[[static]]\ninput = "context"\n[[fill]]', "both [[feedback]] and [[static]]"),
        ('input = "mask"', 'input = "context"', "nothing feeds the model input 'mask' bool [b, n]"),
        ("[[fill]]", '[[forcing]]\ninput = "context"\n[[fill]]', "Keep one, or name with into the part"),
        (
            "[[fill]]",
            '[[static]]\ninput = "mask"\n[[static]]\ninput = "mask"\n[[fill]]',
            "two [[static]] tables",
        ),
        ("value = false", "value = 0", "value 0 does not fit 'mask' bool"),
        ("length = 128", "length = 128\nmode = 'shift'", ""),
        ("index = 5}\n[[", "index = 10}\n[[", "index 10 lies outside axis 2"),
        ("index = 5}\n[[", "start = 0, stop = 12}\n[[", "[0, 12) lies outside axis 2"),
        ("{axis = 2, index = 5}\n[[", "{axis = 3, index = 5}\n[[", "has no axis 3"),
        ("{axis = 2, index = 5}\n[[", "{axis = 0, index = 5}\n[[", "select cuts the batch axis"),
        ("index = 5}\n[[", "stop = 1}\n[[", "differs in rank from its destination [b, n]"),
        ("index = 5}\n[[", "index = 5}\nexpand = [4]\n[[", "expand [4] does not fit"),
        ("batch_axis = 0", "batch_axis = 2", "has no axis 2"),
        ("batch_axis = 0", "batch_axis = 1", "axis 1 is the batch axis, or not an axis of 'context'"),
        ("axis = 1\nselect", "axis = 0\nselect", "axis 0 is the batch axis, or not an axis of 'context'"),
        ("axis = 1\nlength", "axis = 2\nlength", "axis 2 is the batch axis, or not an axis of 'mask'"),
        ("time_axis = 1", "time_axis = 0", "time_axis 0 is the batch axis"),
        ("time_axis = 1", "time_axis = 2", "time_axis 2 is the batch axis, or select removes it"),
        ("time_axis = 1", "time_axis = 7", "has no axis 7"),
        ("length = 500", "length = 513", "fewer values than length 513. Set steps to 5"),
    ],
)
def test_a_spec_that_does_not_fit_the_model_is_refused(old, new, expected):
    assert old in SPEC
    changed = SPEC.replace(old, new, 1)
    if not expected:
        check_spec(parse_spec(changed), signature(FORECAST))
        return
    assert expected in error_of(changed, FORECAST)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (VARIABLE + "axis = 2\nindex = 3\n", "axis 2 is the batch or time axis, or cut"),
        (VARIABLE + "axis = 1\nindex = 3\n", "axis 1 is the batch or time axis, or cut"),
        (VARIABLE + "axis = 3\nindex = 3\n", "has no axis 3"),
        (VARIABLE + "axis = 2\n", "axis and index must be given together"),
        (VARIABLE + "scale = 0\n", "variable[0].scale"),
        (VARIABLE.replace("forecast", "head"), "not in the trajectory"),
        (VARIABLE + VARIABLE, "two variables are called 't2m'"),
    ],
)
def test_a_variable_that_does_not_fit_is_refused(variables, expected):
    assert expected in error_of(SPEC + variables, FORECAST)


def test_an_uncovered_input_is_named_with_what_to_add():
    ports = FORECAST.replace("bool[b, n] mask", "bool[b, n] mask, float[b] season")
    message = error_of(SPEC, ports)
    assert "'season' float32 [b]" in message
    assert 'input = "season"' in message


def test_growing_into_a_fixed_size_is_refused():
    assert "cannot grow" in error_of(SPEC, FORECAST.replace("float[b, n]", "float[b, 512]"))


def test_different_fixed_batch_sizes_are_refused():
    ports = FORECAST.replace("float[b, n]", "float[4, n]").replace("bool[b, n]", "bool[2, n]")
    assert "differ in the batch axis 0" in error_of(SPEC, ports)


STATE = """
version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""


def test_a_feedback_of_another_size_is_refused():
    assert "does not fit [b, 5] in axis 1" in error_of(STATE, "(float[b, 5] x) => (float[b, 4] y)")


def test_a_float_output_does_not_become_an_integer_input():
    assert "fractions would be lost" in error_of(STATE, "(int64[b, 4] x) => (float[b, 4] y)")


def test_a_scale_list_must_fit_its_axis():
    text = STATE.replace('"replace"', '"replace"\nscale = [1, 2, 3]')
    assert "has 3 values, but the axis has 4" in error_of(text, "(float[b, 4] x) => (float[b, 4] y)")


def test_two_feedbacks_of_one_input_need_parts():
    text = STATE.replace(
        "[trajectory]", '[[feedback]]\noutput = "y"\ninput = "x"\nmode = "replace"\n[trajectory]'
    )
    assert "give each of them an into part" in error_of(text, "(float[b, 4] x) => (float[b, 4] y)")


PARTS = STATE.replace(
    'mode = "replace"\n',
    """mode = "replace"
into = {axis = 1, start = 0, stop = 2}
[[feedback]]
output = "z"
input = "x"
mode = "replace"
into = {axis = 1, start = 2}
""",
)


def test_two_feedbacks_may_write_disjoint_parts():
    check_spec(parse_spec(PARTS), signature("(float[b, 4] x) => (float[b, 2] y, float[b, 2] z)"))


def test_overlapping_parts_are_refused():
    text = PARTS.replace("start = 2", "start = 1")
    assert "overlap" in error_of(text, "(float[b, 4] x) => (float[b, 2] y, float[b, 3] z)")


def test_an_input_without_the_batch_axis_is_told_about_shared():
    text = STATE.replace("[trajectory]", '[[static]]\ninput = "s"\n[trajectory]')
    assert "shared = true" in error_of(text, "(float[b, 4] x, float s) => (float[b, 4] y)")


def test_a_shared_input_needs_no_batch_axis():
    text = STATE.replace("[trajectory]", '[[static]]\ninput = "s"\nshared = true\n[trajectory]')
    check_spec(parse_spec(text), signature("(float[1, 4] x, float[3, 4] s) => (float[1, 4] y)"))


def test_unknown_ranks_are_left_to_the_rollout():
    check_spec(parse_spec(STATE), ModelSignature((port("x", 1, None),), (port("y", 1, None),)))


def test_initializers_that_are_inputs_are_no_inputs():
    text = """<ir_version: 3, opset_import: ["": 9]>
    g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"""
    assert [p.name for p in signature_of(parser.parse_model(text)).inputs] == ["x"]


def test_a_table_of_strings_as_input_is_refused():
    with pytest.raises(InputError, match="string values is not supported"):
        signature("(string[b] x) => (float[b] y)")


def test_specs_are_values():
    assert isinstance(parse_spec(SPEC), RolloutSpec)
    assert hash(parse_spec(SPEC)) == hash(parse_spec(SPEC))


LSTM = """
version = 1
[rollout]
steps = 4
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[feedback]]
output = "k"
input = "h"
mode = "replace"
[trajectory]
outputs = ["y"]
"""


def test_a_batch_on_another_axis_is_seen_by_its_name() -> None:
    ports = "(float[b, 1, 3] x, float[2, b, 8] h) => (float[b, 1, 3] y, float[2, b, 8] k)"
    assert "has its batch 'b' on axis 1, others have it on axis 0" in error_of(LSTM, ports)
    check_spec(parse_spec(LSTM.replace("batch_axis = 0\n", "")), signature(ports))
    first = "(float[b, 1, 3] x, float[b, 2, 8] h) => (float[b, 1, 3] y, float[b, 2, 8] k)"
    check_spec(parse_spec(LSTM), signature(first))
    square = "(float[n, n] x, float[n, n] h) => (float[n, n] y, float[n, n] k)"
    check_spec(parse_spec(LSTM), signature(square))


def test_states_without_a_sign_are_not_flipped() -> None:
    text = LSTM.replace("batch_axis = 0", "batch_axis = 0\nflip_invariant = true")
    ports = "(float[b, 3] x, bool[b, 8] h) => (float[b, 3] y, bool[b, 8] k)"
    assert "flip_invariant negates states, but 'h' bool [b, 8] cannot be negative" in error_of(text, ports)


def test_a_forcing_in_part_is_not_flipped() -> None:
    text = LSTM.replace("batch_axis = 0", "batch_axis = 0\nflip_invariant = true")
    text = text.replace(
        'input = "h"\nmode = "replace"', 'input = "h"\nmode = "replace"\ninto = {axis = 1, index = 0}'
    )
    assert "part of input 'h' is a forcing" in error_of(text + '[[forcing]]\ninput = "h"\n')


def test_a_trajectory_is_not_cut_twice_along_one_axis() -> None:
    twice = "[{axis = 1, start = 0, stop = 2}, {axis = 1, index = 0}]"
    assert "select cuts one axis twice" in error_of(LSTM.replace('["y"]', f'["y"]\nselect = {twice}'))


def test_the_unit_of_a_variable_is_for_the_reader() -> None:
    named = LSTM + '[[variable]]\nname = "v"\noutput = "y"\n'
    assert content_hash(parse_spec(named)) == content_hash(parse_spec(named + 'unit = "K"\n'))
    assert content_hash(parse_spec(named)) != content_hash(parse_spec(named + "scale = 2.0\n"))

"""`plan.json`: round trip, what is refused, and what its digest depends on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError, TqsError, one_line
from tqs_passes.grids.grid import Grid, grids_for
from tqs_passes.plan.plan import Assignment, Plan, SolverFacts, TimeFacts, Tried, read_plan
from tqs_passes.tier import Tier

INTEGERS = [t for t in Tier if t.is_integer]


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    kind = draw(st.sampled_from(["keep", "cast", "integer"]))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    fields: dict[str, object] = {"tier": Tier.FP32, "form": Form.KEEP, "rounding": "keep"}
    if kind == "cast":
        fields = {
            "tier": draw(st.sampled_from([Tier.FP16, Tier.BF16])),
            "form": Form.CAST,
            "rounding": "cast",
        }
    if kind == "integer":
        tier = draw(st.sampled_from(INTEGERS))
        fields = {
            "tier": tier,
            "form": draw(st.sampled_from([Form.CAST_MUL, Form.DEQUANTIZE])),
            "rounding": draw(st.sampled_from(["mse", "gptq", "gptaq", "qep"])),
            "grid": draw(st.sampled_from(grids_for(tier.bits))),
            "axis": draw(st.none() | st.integers(0, len(shape) - 1)),
            "half_scales": draw(st.booleans()),
        }
    number = st.floats(allow_nan=False)
    return Assignment.model_validate(
        {
            "weight": draw(st.text(max_size=20)),
            "label": draw(st.text(max_size=20)),
            "shape": shape,
            "dtype": "float32",
            "n_bytes": draw(st.integers(0, 2**40)),
            "error_energy": draw(st.floats(0, allow_infinity=True, allow_nan=False)),
            "gamma": draw(st.none() | number),
            "amplification": draw(number),
            "cost": draw(number),
            "dead": draw(st.booleans()),
            **fields,
        }
    )


def assignment(**update: object) -> Assignment:
    fields: dict[str, object] = {
        "weight": "w",
        "label": "w",
        "shape": (4, 6),
        "dtype": "float32",
        "tier": Tier.INT4,
        "grid": Grid.SIGNED,
        "axis": 1,
        "form": Form.CAST_MUL,
        "rounding": "mse",
        "n_bytes": 10,
        "error_energy": 0.5,
    }
    return Assignment.model_validate(fields | update)


def plan(*listed: Assignment, **update: object) -> Plan:
    fields: dict[str, object] = {
        "source_sha256": "ab",
        "profile": "fast",
        "assignments": listed or (assignment(),),
        "n_bytes": 99,
        "source_bytes": 1000,
    }
    return Plan.model_validate(fields | update)


FACTS = SolverFacts(
    solver="mckp",
    objective="energy",
    cost=1.5,
    bound=-math.inf,
    gap=math.inf,
    optimal=False,
    p_fp32=0.02,
    budget_bytes=9,
)


@settings(max_examples=60, deadline=None)
@given(
    listed=st.lists(assignments(), max_size=4, unique_by=lambda a: a.weight),
    facts=st.sampled_from([None, FACTS]),
)
def test_a_plan_survives_the_round_trip(
    listed: list[Assignment], facts: SolverFacts | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = plan(*listed, solver=facts, warnings=("a", "b\n"))
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(written.to_json(), encoding="utf-8")
    assert read_plan(path) == written
    assert read_plan(path).to_json() == written.to_json()


def document(**update: object) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(plan().to_json())
    return loaded | update


def in_weight(**update: object) -> dict[str, object]:
    loaded = json.loads(plan().to_json())
    loaded["assignments"][0] |= update
    return loaded


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (document(colour="red"), "colour"),
        (document(version=2), "version"),
        (document(version=None), "version"),
        (document(profile="quick"), "profile"),
        (document(n_bytes="many"), "n_bytes"),
        (document(assignments=[{}]), "assignments.0"),
        (in_weight(colour="red"), "colour"),
        (in_weight(tier="INT9"), "tier"),
        (in_weight(n_bytes=-1), "n_bytes"),
        (in_weight(error_energy=-0.5), "error_energy"),
        (in_weight(rounding="guess"), "rounding"),
        (in_weight(grid=None), "no grid None"),
        (in_weight(tier="INT5", grid="midrise"), "INT5 has no grid midrise"),
        (in_weight(axis=2), "axis 2"),
        (in_weight(axis=-1), "axis"),
        (in_weight(form="cast"), "form cast does not decode INT4"),
        (in_weight(form="keep"), "form keep does not decode INT4"),
        (in_weight(form="dq", tier="FP16"), "form dq does not decode FP16"),
        (in_weight(form="keep", tier="FP16"), "cannot have the tier"),
        (in_weight(dtype="int8"), "data type"),
        (document(assignments=2 * json.loads(plan().to_json())["assignments"]), "assigned twice"),
    ],
)
def test_documents_that_are_no_plan_are_refused(made: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(made))
    with pytest.raises(InputError, match=said) as caught:
        read_plan(path)
    assert "plan.json" in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"{" * 5000])
def test_files_that_are_no_json_object_are_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(raw)
    with pytest.raises(InputError):
        read_plan(tmp_path / "plan.json")


def test_a_missing_plan_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_plan(path)


def test_keys_are_written_in_schema_order() -> None:
    keys = list(json.loads(plan().to_json()))
    assert keys == [name for name in Plan.model_fields if name not in ("tried", "time")]


def test_times_are_in_the_file_if_they_were_measured() -> None:
    facts = TimeFacts(predicted=0.5, limit=0.6, batch=32, threads=1, processor="a CPU")
    tried = Tried(
        name="knapsack", rounding="qep", n_bytes=9, drift=0.1, at_best=0.1, low=1.0, high=1.0, chosen=True
    )
    timed = plan().model_copy(update={"time": facts, "tried": (tried,)})
    assert list(json.loads(timed.to_json())) == list(Plan.model_fields)
    assert Plan.model_validate_json(timed.to_json()) == timed
    assert timed.digest() == plan().digest()  # they decide no byte of the file


@pytest.mark.parametrize(
    "update",
    [
        {"weight": "v"},
        {"tier": Tier.INT3},
        {"grid": Grid.MIDRISE},
        {"axis": None},
        {"half_scales": True},
        {"form": Form.DEQUANTIZE},
        {"rounding": "gptq"},
    ],
)
def test_the_digest_depends_on_what_decides_the_bytes(update: dict[str, object]) -> None:
    assert plan(assignment(**update)).digest() != plan().digest()


@pytest.mark.parametrize(
    "update",
    [
        {"label": "other"},
        {"n_bytes": 11},
        {"error_energy": 0.25},
        {"gamma": 1.0},
        {"amplification": 2.0},
        {"cost": 3.0},
        {"dead": True},
    ],
)
def test_the_digest_does_not_depend_on_what_only_explains(update: dict[str, object]) -> None:
    assert plan(assignment(**update)).digest() == plan().digest()


def test_the_digest_depends_on_source_and_order_but_not_on_predictions() -> None:
    a, b = assignment(), assignment(weight="v")
    assert plan(a, b).digest() != plan(b, a).digest()
    assert plan(source_sha256="cd").digest() != plan().digest()
    assert plan(predicted_drift=0.5, warnings=("x",), solver=FACTS, n_bytes=1).digest() == plan().digest()


def test_the_digest_depends_on_the_profile_because_the_file_is_judged_by_it() -> None:
    digests = {plan(profile=profile).digest() for profile in ("fast", "exact", "small")}
    assert len(digests) == 3


def test_weight_bytes_are_summed() -> None:
    assert plan(assignment(), assignment(weight="v", n_bytes=5)).weight_bytes == 15


def test_an_error_is_one_line_of_where_what_and_todo() -> None:
    error = TqsError("no\nsuch weight", where="model\x1b[0m.onnx", todo="Try again")
    assert str(error) == "model\\x1b[0m.onnx: no\\nsuch weight. Try again"


@given(text=st.text(max_size=400))
def test_one_line_is_printable_and_short(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 300

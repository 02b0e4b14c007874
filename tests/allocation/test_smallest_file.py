"""The smallest file found is that of the definition, and what would help is said where a target needs another opset."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import forecaster, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.choice import Bundle
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.file_size import file_bytes, kinds_of, smallest_file
from tqs_onnx.allocation.offers import entries_of
from tqs_onnx.allocation.request import request_for
from tqs_onnx.cli.main import main
from tqs_passes.tier import DEFAULT_TIERS


def by_definition(request: Request, offers: list[tuple[Bundle, ...]], kinds: frozenset[str]) -> int:
    """Return the bytes of a file in which every weight has its smallest choice of these kinds, else of any."""
    chosen = []
    for offer in offers:
        allowed = [b for b in offer if kinds_of(b) <= kinds] or list(offer)
        chosen += min(allowed, key=lambda b: b.n_bytes).candidates
    return file_bytes(request.size, chosen)


def test_the_smallest_file_is_that_of_its_kinds_and_no_single_change_is_smaller(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster(24, 40))
    request = request_for(source, scored(source, spec_of(), values(2, 24)), "exact", DEFAULT_TIERS)
    offers = [e.bundles for e in entries_of(request, PlanOptions())]
    n_bytes, kinds = smallest_file(request.size, offers)
    every = {kind for offer in offers for b in offer for kind in kinds_of(b)}
    assert n_bytes == by_definition(request, offers, kinds)
    assert all(n_bytes <= by_definition(request, offers, kinds ^ {kind}) for kind in every)
    assert n_bytes <= by_definition(request, offers, frozenset(every))


@pytest.mark.parametrize(("tiers", "hinted"), [("FP16,INT8,INT4", True), ("FP16,INT8", False)])
def test_a_budget_that_another_opset_would_meet_says_so(
    tiers: str, hinted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path / "in", forecaster(64, 128))
    budget = ["--target", "tensorrt", "--tiers", tiers, "--compression", "5", "--repair", "0"]
    line = ["quantize", str(case.model), *case.arguments(*budget)]
    assert main([*line, "--out", str(tmp_path / "a")]) == 4
    said = "set --opset to 21, from which TensorRT reads INT4: the model has 17"
    assert (said in capsys.readouterr().err) is hinted
    if hinted:
        assert main([*line, "--out", str(tmp_path / "b"), "--opset", "21"]) == 0


def test_a_sweep_never_overwrites_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = write_case(tmp_path / "in", forecaster())
    run = tmp_path / "run"
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    assert main(["score", str(case.model), *data, "--out", str(run)]) == 0
    taken = run / "m.C2.onnx"
    case.model.rename(run / "m.onnx")
    taken.symlink_to(run / "m.onnx")
    before = (run / "m.onnx").read_bytes()
    line = ["sweep", str(run / "m.onnx"), "--scores", str(run / "scores.json"), *case.arguments()]
    assert main([*line, "--out", str(run), "--compressions", "2"]) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert (run / "m.onnx").read_bytes() == before

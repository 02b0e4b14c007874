"""A short set of attacks of every kind; `python -m tests.gauntlet` runs the long one."""

from __future__ import annotations

import pytest

from tests.gauntlet.campaign import KINDS, attacked, killed, run

#: Attacks of a kind that run by default.
FEW = 12


@pytest.fixture(autouse=True)
def no_child_for_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that attack the runtime are not called in this process; see `prepare`."""
    monkeypatch.setattr("tqs_onnx.inputs.drafting._asked", lambda *_: "the gauntlet makes no trial calls")


@pytest.mark.parametrize("kind", KINDS)
def test_no_attack_ends_badly(kind: str) -> None:
    row = attacked(kind, range(10_000, 10_000 + FEW))
    assert row.bad == []
    assert sum(row.outcomes.values()) == FEW


@pytest.mark.slow
def test_no_attack_of_the_long_set_ends_badly(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--workers", "2"]) == 0
    assert "| all | 48" in capsys.readouterr().out


@pytest.mark.slow
def test_no_kill_leaves_anything_torn() -> None:
    for name, row in killed(1).items():
        assert row.bad == [], name

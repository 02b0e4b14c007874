"""A short set of attacks of every kind; `python -m tests.gauntlet` runs the long one."""

from __future__ import annotations

import pytest

from tests.gauntlet.__main__ import attacked, killed, run
from tests.gauntlet.attacks import KINDS

#: Attacks of a kind that run by default.
FEW = 12


@pytest.mark.parametrize("kind", KINDS)
def test_no_attack_ends_badly(kind: str) -> None:
    row = attacked(kind, range(10_000, 10_000 + FEW))
    assert row.bad == []
    assert sum(row.outcomes.values()) == FEW


@pytest.mark.slow
def test_no_attack_of_the_long_set_ends_badly(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--attacks", "3200"]) == 0
    assert "| all | 32" in capsys.readouterr().out


@pytest.mark.slow
def test_no_kill_leaves_anything_torn() -> None:
    for name, row in killed(1).items():
        assert row.bad == [], name

"""A damaged store changes no score: what does not hold is measured again, and said; or one line refuses the file."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gauntlet.stores import EDITS, blanked, edited, flipped, truncated
from tests.rollouts import bed_of, forecaster, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.scoring.score import score
from tqs_passes.errors import InputError


@dataclass(frozen=True)
class Stored:
    """A finished sweep: its store, its scores, and how to run it again on a store."""

    store: Path
    text: str
    again: Callable[[Path], str]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("stored")
    source = opened(folder, forecaster(6, 8))
    bed = bed_of(source, spec_of(), Contexts({"x": values(2, 6)}, {}))

    def again(store: Path) -> str:
        return score(bed, source.sha256, store=store).to_json()

    text = again(folder / "s.sqlite")
    return Stored(folder / "s.sqlite", text, again)


@pytest.mark.parametrize("statement", EDITS)
def test_an_edit_by_hand_changes_no_score_and_is_told(
    stored: Stored, tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    store = tmp_path / "s.sqlite"
    shutil.copy(stored.store, store)
    edited(store, statement)
    with caplog.at_level(logging.WARNING):
        assert stored.again(store) == stored.text
    harmless = statement.startswith("DELETE") or "WHERE 0" in statement or "SET id" in statement
    assert ("are damaged and are measured again" in caplog.text) != harmless
    caplog.clear()
    assert stored.again(store) == stored.text
    assert caplog.text == ""  # mended


@pytest.mark.parametrize("damage", [flipped, truncated, blanked])
def test_damage_anywhere_changes_no_score(
    stored: Stored, tmp_path: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    survived = 0
    for seed in range(25):
        store = tmp_path / f"{seed}.sqlite"
        shutil.copy(stored.store, store)
        damage(store, random.Random(seed))
        try:
            text = stored.again(store)
        except InputError as error:
            text, where = "", error.where
            assert where == str(store), f"seed {seed}: {error}"  # noqa: PT017  (either outcome is right)
        assert text in ("", stored.text), f"seed {seed}"
        survived += bool(text)
    assert survived or damage is not flipped


def test_a_damaged_schema_is_one_line(stored: Stored, tmp_path: Path) -> None:
    raw = stored.store.read_bytes()
    (tmp_path / "s.sqlite").write_bytes(raw.replace(b"CREATE TABLE measurement", b"CREATE TUBLE measurement"))
    with pytest.raises(InputError, match=r"s\.sqlite: is damaged \(malformed database schema"):
        stored.again(tmp_path / "s.sqlite")

"""models/zoo/VARIANTS.md: what is found in each export, held against exports made here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def variants() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("inspect_variants")
    finally:
        sys.path[:] = before


def committed() -> dict[tuple[str, str], str]:
    """Return the rows of the committed table by network and exporter."""
    lines = (ROOT / "models" / "zoo" / "VARIANTS.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][2:]
    heads = [row.strip("| ").split(" | ")[:2] for row in rows]
    return {(network, exporter): row for (network, exporter), row in zip(heads, rows, strict=True)}


def cells(row: str) -> list[int]:
    return [int(cell) for cell in row.strip("| ").split(" | ")[2:]]


def test_no_matrix_of_any_export_has_a_wrong_channel_axis() -> None:
    assert len(committed()) >= 19
    assert all(cells(row)[4] == 0 for row in committed().values())


@pytest.mark.parametrize("network", ["timesfm", "aurora"])
def test_our_own_exports_keep_every_parameter_under_its_name_and_nothing_else(network: str) -> None:
    parameters, found, named, folded, _, other, *_ = cells(committed()[network, "tqs export"])
    assert parameters == found == named
    assert folded == other == 0


def test_the_pangu_shaped_rows_are_those_of_the_table(variants: ModuleType) -> None:
    table = variants.markdown(list(variants.shaped_rows()))
    rows = [line for line in table.splitlines() if line.startswith("| Pangu-shaped")]
    assert rows == [row for (network, _), row in committed().items() if network == "Pangu-shaped"]


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # torch's exporters warn about themselves
@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (False, 11), (False, 17)])
def test_an_export_of_pangu_mini_gives_the_row_of_the_table(
    variants: ModuleType, dynamo: bool, opset: int
) -> None:
    pytest.importorskip("torch", reason="needs the [export] extra")
    module, example = variants.pangu_mini()
    found = list(variants._torch_rows("pangu_mini", module, example, [(dynamo, opset)], cut="", turned=False))
    row = next(line for line in variants.markdown(found).splitlines() if line.startswith("| pangu_mini"))
    assert row == committed()["pangu_mini", f"{'dynamo' if dynamo else 'TorchScript'} {opset}"]

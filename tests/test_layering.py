"""Imports go down: the floors of the house, and the stages inside it, read off the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSES = sorted((ROOT / "passes" / "tqs_passes").rglob("*.py"))
ONNX = sorted((ROOT / "tqs_onnx").rglob("*.py"))
MODELS = sorted((ROOT / "models" / "tqs_models").rglob("*.py"))
SESSION = ROOT / "tqs_onnx" / "rollout" / "session.py"

#: Stages from the ground up; a module imports from its own stage or a lower one.
FLOORS = {
    "version": 0,
    "rollout": 1,
    "score": 2,
    "rounding": 2,
    "allocate": 3,
    "emit": 4,
    "source": 4,
    "verify": 5,
    "joint": 6,
    "repair": 7,
    "measured": 7,
    "pareto": 7,
    "frontier": 9,
    "refine": 8,
    "bundled": 8,
    "data": 5,
    "request": 5,
    "served": 5,
    "run_directory": 0,
    "release": 6,
    "pipeline": 9,
    "compare": 8,
    "report": 10,
    "packaging": 10,
    "baseline": 10,
    "build": 10,
    "cli": 11,
}


def imports(file: Path) -> Iterator[str]:
    """Yield every module a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def tops(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert min(len(PASSES), len(ONNX), len(MODELS)) > 3
    assert "onnxruntime" in tops(SESSION)


@pytest.mark.parametrize("file", PASSES, ids=shown)
def test_passes_import_nothing_from_above_no_runtime_no_clock_and_no_randomness(file: Path) -> None:
    forbidden = {
        "tqs_onnx",
        "tqs_models",
        "onnxruntime",
        "time",
        "datetime",
        "random",
        "secrets",
        "click",
        "torch",
    }
    assert not tops(file) & forbidden


@pytest.mark.parametrize("file", PASSES, ids=shown)
def test_passes_draw_no_random_numbers(file: Path) -> None:
    assert "np.random" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [f for f in ONNX if f != SESSION], ids=shown)
def test_only_the_session_imports_the_runtime(file: Path) -> None:
    assert "onnxruntime" not in tops(file)


@pytest.mark.parametrize("file", ONNX, ids=shown)
def test_nothing_imports_the_models(file: Path) -> None:
    assert not tops(file) & {"tqs_models", "torch"}


@pytest.mark.parametrize("file", ONNX, ids=shown)
def test_stages_import_downward_only(file: Path) -> None:
    parts = file.relative_to(ROOT / "tqs_onnx").with_suffix("").parts
    if parts == ("__init__",):
        assert not tops(file)
        return
    floor = FLOORS[parts[0]]
    for name in imports(file):
        package, *rest = name.split(".")
        if package == "tqs_onnx" and rest:
            above = FLOORS[rest[0]] > floor
            assert not above, f"{shown(file)} imports {name}, which lies above it"


def test_the_knapsack_and_the_measures_know_neither_onnx_nor_the_runtime() -> None:
    for name in (
        "allocate/knapsack",
        "allocate/problem",
        "allocate/allocate",
        "allocate/objective",
        "score/gamma",
    ):
        assert not tops(ROOT / "tqs_onnx" / f"{name}.py") & {"onnx", "onnxruntime", "onnx_graphsurgeon"}

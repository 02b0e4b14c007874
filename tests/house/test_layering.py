"""Imports go down: the floors of the house, and the stages inside it, read off the syntax trees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import import_graph

ROOT = Path(__file__).parents[2]
PASSES = sorted((ROOT / "passes" / "tqs_passes").rglob("*.py"))
ONNX = sorted((ROOT / "tqs_onnx").rglob("*.py"))
MODELS = sorted((ROOT / "models" / "tqs_models").rglob("*.py"))
SESSION = ROOT / "tqs_onnx" / "rollout" / "session.py"
CLI = ROOT / "tqs_onnx" / "cli"
FLAG = re.compile(r"--[a-z][a-z-]+")
#: Flags of trtexec and of `olive run --config`, which packages are written for.
FOREIGN_FLAG = re.compile(
    r"--(?:onnx|saveEngine|skipInference|stronglyTyped|(?:min|opt|max)Shapes|(?:package-)?config)\b"
)

#: Rooms from the ground up, package by package; a module imports from its own room or from a room further down.
ROOMS = {
    "tqs_passes": (
        ("errors", "weights"),
        ("tier",),
        ("files", "grids"),
        ("graph_pass", "graph", "encode"),
        ("survey", "plan"),
        ("transforms",),
        ("pipeline",),
    ),
    "tqs_onnx": (
        ("version", "shown"),
        ("emission", "rollout"),
        ("inputs", "scoring", "rounding", "verification"),
        ("allocation",),
        ("refinement", "packaging"),
        ("jobs",),
        ("analysis",),
        ("report",),
        ("api",),
        ("cli",),
    ),
}
#: Rooms inside rooms, likewise.
INNER = {
    "tqs_onnx.rollout": (("spec",), ("contexts",)),
    "tqs_onnx.scoring": (("plan",), ("measure",), ("workers",)),
    "tqs_onnx.allocation": (("solver",),),
    "tqs_passes.transforms": (("half_precision",),),
}


def imports(file: Path) -> Iterator[str]:
    """Yield every module a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def eager_imports(file: Path) -> Iterator[str]:
    """Yield the modules that importing a file imports; what `if TYPE_CHECKING` guards is not among them."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
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


def floor_in(rooms: tuple[tuple[str, ...], ...], name: str) -> int | None:
    return next((floor for floor, here in enumerate(rooms) if name in here), None)


@pytest.mark.parametrize("file", [*PASSES, *ONNX], ids=shown)
def test_rooms_import_downward_only(file: Path) -> None:
    base = ROOT / "passes" if file.is_relative_to(ROOT / "passes") else ROOT
    package, *parts = file.relative_to(base).with_suffix("").parts
    if parts == ["__init__"]:
        assert not any(name.startswith(("tqs_", "onnx")) for name in eager_imports(file))
        return
    floor = floor_in(ROOMS[package], parts[0])
    assert floor is not None, f"{shown(file)} lies in a room that has no floor"
    for name in imports(file):
        other, *rest = name.split(".")
        if other != package or not rest:
            continue
        there = floor_in(ROOMS[package], rest[0])
        assert there is not None, f"{shown(file)} imports {name}, which has no floor"
        assert rest[0] == parts[0] or there < floor, f"{shown(file)} imports {name}, which lies above it"


@pytest.mark.parametrize("file", [*PASSES, *ONNX], ids=shown)
def test_inner_rooms_import_downward_only(file: Path) -> None:
    base = ROOT / "passes" if file.is_relative_to(ROOT / "passes") else ROOT
    package, *parts = file.relative_to(base).with_suffix("").parts
    room = f"{package}.{parts[0]}"
    if room not in INNER:
        return
    top = len(INNER[room])  # modules of the room itself lie above its inner rooms
    floor = floor_in(INNER[room], parts[1])
    for name in imports(file):
        if not name.startswith(f"{room}."):
            continue
        inner = name.split(".")[2]
        there = floor_in(INNER[room], inner)
        same = inner == parts[1] or floor is None
        lower = (top if there is None else there) < (top if floor is None else floor)
        assert same or lower, f"{shown(file)} imports {name}, which lies above it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph.rooms_of(ROOT, depth=9)
    installed = graph.subgraph(m for m in graph if not m.startswith("tqs_models"))
    assert import_graph.circles(installed) == []


def test_the_knapsack_and_the_measures_know_neither_onnx_nor_the_runtime() -> None:
    for name in (
        "allocation/solver/knapsack",
        "allocation/solver/problem",
        "allocation/solver/algorithm2",
        "allocation/objective",
        "scoring/measure/gamma",
    ):
        assert not tops(ROOT / "tqs_onnx" / f"{name}.py") & {"onnx", "onnxruntime", "onnx_graphsurgeon"}


def named_flags(file: Path) -> list[str]:
    """Return the string constants of a file, docstrings included, that name a command-line flag."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            rest = FOREIGN_FLAG.sub("", node.value)
            found += [f"line {node.lineno}: {flag}" for flag in FLAG.findall(rest)]
    return found


@pytest.mark.parametrize("file", [f for f in (*PASSES, *ONNX) if CLI not in f.parents], ids=shown)
def test_no_text_below_the_command_line_names_a_flag(file: Path) -> None:
    """Messages name parameters in backticks; `tqs_onnx.cli.main.in_flags` translates them into flags."""
    assert named_flags(file) == []

"""Lists the rooms of the code, the floor of each, and the arrows between them, computed from the imports.

A room is a folder of the package that contains modules; a module beside folders is a separate room. An arrow points
from a room to a room that it imports from. The floor of a room is one more than the highest floor it imports from; a
room that imports from no other has floor 0. Rooms in an import cycle have no floor and are listed separately.

    python tools/import_graph.py [ROOT ...]
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOTS = {"tqs_passes": "passes", "tqs_onnx": ".", "tqs_models": "models"}
HERE = Path(__file__).resolve().parents[1]


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the checkout by its dotted name."""
    found: dict[str, Path] = {}
    for package, folder in ROOTS.items():
        base = root / folder
        for file in sorted((base / package).rglob("*.py")):
            parts = file.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(name: str, known: dict[str, Path], depth: int) -> str:
    """Return the room of a module: its folder, cut to `depth` folders below the package."""
    parts = name.split(".")
    if depth >= len(parts):
        return name
    is_folder = known[name].name == "__init__.py"
    folder = parts if is_folder else parts[:-1]
    return ".".join(folder[: depth + 1]) if len(folder) > 1 else name


def rooms_of(root: Path, depth: int) -> nx.DiGraph:
    """Return the rooms as nodes and the imports between them as edges, each with its modules."""
    known = modules(root)
    graph = nx.DiGraph()
    for name, file in known.items():
        here = room_of(name, known, depth)
        graph.add_node(here)
        for target in imported(file):
            parts = target.split(".")
            found = next((m for i in range(len(parts), 0, -1) if (m := ".".join(parts[:i])) in known), None)
            if found is None:
                continue
            there = room_of(found, known, depth)
            if there != here:
                graph.add_edge(here, there)
    return graph


def floors_of(graph: nx.DiGraph) -> dict[str, int]:
    """Return the floor of every room that is neither in a cycle nor imports from one."""
    floors: dict[str, int] = {}
    loose = {room for circle in circles(graph) for room in circle}
    for room in reversed(list(nx.topological_sort(nx.condensation(graph)))):
        for member in nx.condensation(graph).nodes[room]["members"]:
            below = [floors[b] + 1 for b in graph.successors(member) if b in floors and b not in loose]
            floors[member] = max(below, default=0)
    return {room: floor for room, floor in floors.items() if room not in loose}


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Return the sets of rooms that import each other in a cycle."""
    return [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]


def main() -> int:
    """Print the rooms of every given checkout; exit 1 if rooms form a cycle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="*", type=Path, default=[HERE], help="checkouts [default: this one]")
    parser.add_argument("--depth", type=int, default=1, help="folders below the package that count as rooms")
    given = parser.parse_args()
    bad = False
    for root in given.roots:
        graph = rooms_of(root, given.depth)
        floors = floors_of(graph)
        for floor in sorted(set(floors.values()), reverse=True):
            print(f"floor {floor}")
            for room in sorted(r for r, f in floors.items() if f == floor):
                print(f"  {room} -> {', '.join(sorted(graph.successors(room))) or '(nothing)'}")
        for circle in circles(graph):
            bad = True
            print(f"circle: {', '.join(circle)}")
        n = graph.number_of_nodes(), len(set(floors.values())), graph.number_of_edges()
        print(f"{n[0]} rooms, {n[1]} floors, {n[2]} arrows, {len(circles(graph))} circles\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

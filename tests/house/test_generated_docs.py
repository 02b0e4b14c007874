"""What `tools/make_docs.py` writes is stored as it writes it, and real files are valid by the schemas."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.rollouts import forecaster, write_case
from tools import make_docs
from tqs_onnx.cli.main import main

ROOT = Path(__file__).parents[2]
MADE = make_docs.documents()
SPECS = sorted((ROOT / "models").rglob("rollout.toml"))
RECIPES = re.findall(
    r"^```toml\n(.*?)^```$", (ROOT / "docs/rollout-spec.md").read_text(encoding="utf-8"), re.M | re.S
)


def require_valid(document: object, name: str) -> None:
    validator: Any = pytest.importorskip(
        "jsonschema", reason="jsonschema is not installed"
    ).Draft202012Validator
    schema = json.loads(MADE[make_docs.DOCS / "schemas" / f"{name}.schema.json"])
    validator.check_schema(schema)
    validator(schema).validate(document)


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    assert stored == MADE[path], f"{path.relative_to(ROOT)} is out of date: run python tools/make_docs.py"


def test_no_schema_is_left_over() -> None:
    assert set((ROOT / "docs/schemas").iterdir()) == {p for p in MADE if p.parent.name == "schemas"}


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.parent.name)
def test_a_rollout_spec_of_a_model_is_valid(file: Path) -> None:
    require_valid(tomllib.loads(file.read_text(encoding="utf-8")), "rollout")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_of_the_reference_is_valid(recipe: str) -> None:
    require_valid(tomllib.loads(recipe), "rollout")


def test_the_files_of_a_run_a_build_and_a_sweep_are_valid(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster(24, 48), steps=2)
    build = f"""version = 1
model = "{case.model.name}"
[data]
rollout = "rollout.toml"
contexts = "contexts.npz"
eval_contexts = "eval.npz"
[plan]
compression = 2
[run]
threads = 1
"""
    (tmp_path / "tqs.toml").write_text(build)
    require_valid(tomllib.loads(build), "tqs")
    assert main(["build", str(tmp_path / "tqs.toml")]) == 0
    scores = str(tmp_path / "run/scores.json")
    sweep = ["--scores", scores, "--compressions", "2", "--out", str(tmp_path / "frontier")]
    assert main(["sweep", str(case.model), *case.arguments(*sweep)]) == 0
    files = {
        "plan": "run/plan",
        "scores": "run/scores",
        "manifest": "run/manifest",
        "build-state": "run/build",
    }
    for schema, file in (files | {"pareto": "frontier/pareto"}).items():
        require_valid(json.loads((tmp_path / f"{file}.json").read_text()), schema)

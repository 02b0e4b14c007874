"""The pins of `.ci/run` against pyproject.toml: nothing is installed there that nobody pinned."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    wanted = [Requirement(text) for text in [*listed, *project["build-system"]["requires"]]]
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    here = {"sys_platform": "linux", "platform_machine": "x86_64"}  # where the checks run
    wrong = [
        str(r)
        for r in wanted
        if (r.marker is None or r.marker.evaluate(here))
        and not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))
    ]
    assert wrong == []

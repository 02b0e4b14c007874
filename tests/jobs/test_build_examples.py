"""The examples in `docs/build.md` run as they stand: the build file, the Makefile and the CI job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.rollouts import forecaster, write_case

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return str(text)


def project(folder: Path, **replaced: str) -> dict[str, str]:
    """Write a small model and the page's examples into a folder; return an environment with `tqs` on its PATH."""
    write_case(folder, forecaster(64, 128), steps=2)
    proto = onnx.load(folder / "m.onnx")
    proto.metadata_props.add(key="license", value="CC-BY-4.0")
    onnx.save(proto, folder / "model.onnx")
    (folder / "m.onnx").unlink()
    text = example("toml")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tqs.toml").write_text(text)
    (folder / "Makefile").write_text(example("make"))
    (folder / "bin").mkdir()
    script = folder / "bin/tqs"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tqs_onnx.cli.main "$@"\n')
    script.chmod(0o755)
    paths = os.pathsep.join(str(p) for p in (ROOT, ROOT / "passes", ROOT / "models"))
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def ran(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )


#: At compression 8 this model drifts further than the example's gate allows: the fixture asks for less.
GENTLE = {"compression = 8": "compression = 2"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_makefile_builds_once_and_is_then_up_to_date(tmp_path: Path) -> None:
    env = project(tmp_path, **GENTLE)
    first = ran(["make"], tmp_path, env)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "run/model.tqs.onnx").is_file()
    assert "up to date" in ran(["make"], tmp_path, env).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_failed_gate_fails_make_every_time_and_leaves_no_target(tmp_path: Path) -> None:
    env = project(tmp_path, **GENTLE, **{"max_drift = 0.1": "max_drift = 1e-9"})
    for _ in range(2):
        done = ran(["make"], tmp_path, env)
        assert done.returncode == 2
        assert "Error 3" in done.stderr
        assert not (tmp_path / "run/model.tqs.onnx").exists()


@pytest.mark.slow
def test_the_steps_of_the_ci_job_run_and_the_manifest_says_what_went_in_and_out(tmp_path: Path) -> None:
    env = project(tmp_path, **GENTLE)
    steps = re.findall(r"^ *- run: (.*)$", example("yaml"), re.M)
    commands = [step for step in steps if not step.startswith("pip install")]
    assert len(commands) == len(steps) - 1 == 1
    for command in commands:
        done = ran(["sh", "-c", command], tmp_path, env)
        assert done.returncode == 0, done.stderr
    build = json.loads((tmp_path / "build.json").read_text())
    run = tmp_path / "run"
    for name, digest in build["files"].items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest
    made = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert made - set(build["files"]) == {"build.json", "sweep.sqlite"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["licence"] == "CC-BY-4.0"
    given = {"model", "rollout", "contexts", "evaluation"}
    lie = {"plan": run, "scores": run, "codes": run}
    assert set(manifest["inputs"]) == given | lie.keys()
    for role, files in manifest["inputs"].items():
        for name, digest in files.items():
            assert hashlib.sha256((lie.get(role, tmp_path) / name).read_bytes()).hexdigest() == digest
    (output,) = manifest["output"].items()
    assert hashlib.sha256((run / output[0]).read_bytes()).hexdigest() == output[1]

"""The programs of the recipes run on the demo model, where what they need is at hand, and forecast what Python does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tqs_models.lorenz96 import files
from tqs_onnx.rollout.session import SessionOptions, open_session

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
STEPS = 5


def program(page: str, language: str) -> str:
    (text,) = re.findall(
        rf"^```{language}\n(.*?)^```", (RECIPES / page).read_text(encoding="utf-8"), re.M | re.S
    )
    return str(text)


def state() -> np.ndarray:
    with np.load(files().evaluation) as stored:
        return np.asarray(stored["state"][:1], np.float32)


def expected() -> np.ndarray:
    """Return the forecast, float32 [step, 40]."""
    session = open_session(files().model, options=SessionOptions(threads=1))
    found, x = [], state()
    for _ in range(STEPS):
        x = session.run({"state": session.value(x)})["next"].numpy()
        found.append(x[0])
    return np.array(found)


def ran(command: list[str], folder: Path, given: str, **env: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        input=given,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_c_plus_plus_program_forecasts_what_python_does(tmp_path: Path) -> None:
    home, compiler = os.environ.get("ONNXRUNTIME_HOME"), shutil.which("g++")
    if home is None or compiler is None:
        pytest.skip("needs g++, and ONNXRUNTIME_HOME to name an unpacked release of onnxruntime")
    (tmp_path / "rollout.cpp").write_text(program("cpp.md", "cpp"))
    library = [f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-lonnxruntime"]
    ran([compiler, "-std=c++17", "rollout.cpp", f"-I{home}/include", *library, "-o", "rollout"], tmp_path, "")
    given = "\n".join(repr(float(v)) for v in state()[0])
    made = ran([str(tmp_path / "rollout"), str(files().model), str(STEPS), "40"], tmp_path, given)
    found = np.array([float(line) for line in made.split()]).reshape(STEPS, 40)
    np.testing.assert_allclose(found, expected(), atol=1e-4)


def test_the_node_program_forecasts_what_python_does(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = tmp_path / "rollout.cjs"
    script.write_text(program("browser.md", "js"))
    there = subprocess.run(
        [node, "-e", "require.resolve('onnxruntime-web')"], capture_output=True, check=False
    )
    if there.returncode != 0:
        pytest.skip(
            "node does not find onnxruntime-web: npm install it, and set NODE_PATH to its node_modules"
        )
    given = json.dumps([float(v) for v in state()[0]])
    made = ran([node, str(script), str(files().model), str(STEPS)], tmp_path, given)
    np.testing.assert_allclose(np.array(json.loads(made)), expected(), atol=1e-4)


@pytest.mark.parametrize(("page", "needs"), [("mlflow.md", "mlflow"), ("huggingface.md", "huggingface_hub")])
def test_the_python_of_a_recipe_compiles(page: str, needs: str) -> None:
    text = program(page, "python")
    compile(text, page, "exec")
    assert re.search(rf"^(import|from) {needs}", text, re.M)


def test_the_kserve_example_is_what_a_yaml_reader_takes() -> None:
    if importlib.util.find_spec("yaml") is None:
        pytest.skip("pyyaml is not installed")
    import yaml

    service = yaml.safe_load(program("kserve.md", "yaml"))
    assert service["spec"]["predictor"]["model"]["modelFormat"] == {"name": "onnx"}

"""`tqs package`: what is written is what Triton, TensorRT and Olive read."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.rollouts import forecaster, model, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.packaging.olive import MODULE, package_config
from tqs_onnx.packaging.triton import config_text, quoted
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import DEFAULT_TIERS

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w]*|-?\d+|[{}\[\]:,]')


def parsed(text: str) -> dict[str, list[Any]]:
    """Parse protobuf text of the few shapes used here: field name to the list of its values."""
    tokens = TOKEN.findall(text)
    assert "".join(tokens) == re.sub(
        r"\s", "", text
    )  # nothing was skipped over (names in these tests hold no blanks)
    message, rest = _message(tokens)
    assert not rest
    return message


def _message(tokens: list[str]) -> tuple[dict[str, list[Any]], list[str]]:
    found: dict[str, list[Any]] = {}
    while tokens and tokens[0] != "}":
        name, tokens = tokens[0], tokens[1:]
        if tokens[0] == "{":
            value, tokens = _message(tokens[1:])
            tokens = tokens[1:]
            found.setdefault(name, []).append(value)
            continue
        assert tokens[0] == ":"
        tokens = tokens[1:]
        if tokens[0] == "[":
            end = tokens.index("]")
            found.setdefault(name, []).extend(int(t) for t in tokens[1:end] if t != ",")
            tokens = tokens[end + 1 :]
            continue
        found.setdefault(name, []).append(tokens[0])
        tokens = tokens[1:]
    return found, tokens


def emitted(folder: Path, serving: Serving | None = None, part: int = 4) -> Path:
    source = opened(folder, forecaster(48, 96))
    request = request_for(source, scored(source, spec_of(), values(2, 48)), "fast", DEFAULT_TIERS, serving)
    plan = plan_within(request, request.size.source_bytes // part, PlanOptions())
    emit(source.lifted, plan, folder / "m.tqs.onnx")
    return folder / "m.tqs.onnx"


def test_a_triton_repository_holds_the_file_and_its_config(tmp_path: Path) -> None:
    file = emitted(tmp_path)
    assert main(["package", str(file), "--format", "triton", "--out", str(tmp_path / "repo")]) == 0
    assert (tmp_path / "repo/m/1/model.onnx").read_bytes() == file.read_bytes()
    config = parsed((tmp_path / "repo/m/config.pbtxt").read_text())
    assert (config["name"], config["backend"], config["max_batch_size"]) == (
        ['"m"'],
        ['"onnxruntime"'],
        ["0"],
    )
    assert config["input"] == [{"name": ['"x"'], "data_type": ["TYPE_FP32"], "dims": [-1, 48]}]
    assert config["output"] == [{"name": ['"y"'], "data_type": ["TYPE_FP32"], "dims": [-1, 48]}]


def test_with_a_batch_the_first_dimension_is_left_out(tmp_path: Path) -> None:
    file = emitted(tmp_path)
    arguments = ["package", str(file), "--format", "triton", "--max-batch", "32", "--name", "s", "--out"]
    assert main([*arguments, str(tmp_path / "repo")]) == 0
    config = parsed((tmp_path / "repo/s/config.pbtxt").read_text())
    assert config["max_batch_size"] == ["32"]
    assert config["input"][0]["dims"] == [48]
    assert config["dynamic_batching"] == [{}]


def test_external_data_is_laid_out_as_a_folder_that_loads(tmp_path: Path) -> None:
    save_model(Model(forecaster(48, 96), tmp_path), tmp_path / "big.onnx", external=True)
    assert (
        main(["package", str(tmp_path / "big.onnx"), "--format", "triton", "--out", str(tmp_path / "r")]) == 0
    )
    folder = tmp_path / "r/big/1/model.onnx"
    assert sorted(f.name for f in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    session = open_session(folder / "model.onnx", options=SessionOptions(threads=1))
    x = session.value(values(2, 48))
    ours = open_session(tmp_path / "big.onnx", options=SessionOptions(threads=1)).run({"x": x})["y"].numpy()
    assert ours.tobytes() == session.run({"x": x})["y"].numpy().tobytes()


SIGNATURE = ModelSignature(
    (Port("scalar", np.dtype(np.float32), ()), Port('a"b\\c\n\u03b3', np.dtype(np.int64), ("n", 3))),
    (Port("flag", np.dtype(np.bool_), (2,)),),
)


def test_scalars_are_reshaped_and_names_escaped() -> None:
    config = parsed(config_text(SIGNATURE, "m", 0))
    assert config["input"][0]["dims"] == [1]
    assert config["input"][0]["reshape"] == [{"shape": []}]
    assert config["input"][1]["name"] == [r'"a\042b\134c\012\316\263"']
    assert quoted("plain") == '"plain"'


def test_tritonclient_reads_back_what_was_meant() -> None:
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    file = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from google.protobuf import text_format

    config = text_format.Parse(config_text(SIGNATURE, "m", 0), module.ModelConfig())
    assert [i.name for i in config.input] == [p.name for p in SIGNATURE.inputs]
    assert [list(i.dims) for i in config.input] == [[1], [-1, 3]]
    assert config.input[0].HasField("reshape")
    assert config.output[0].data_type == module.TYPE_BOOL


def test_a_batch_without_a_free_dimension_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(model("(float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }", {}), tmp_path / "m.onnx")
    arguments = ["package", str(tmp_path / "m.onnx"), "--format", "triton", "--max-batch", "8"]
    assert main([*arguments, "--out", str(tmp_path / "r")]) == 2
    assert "no free first dimension" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\nb"])
def test_a_name_that_leaves_the_repository_is_refused(tmp_path: Path, name: str) -> None:
    onnx.save(model("(float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }", {}), tmp_path / ".onnx")
    arguments = ["package", str(tmp_path / ".onnx"), "--format", "triton", "--name", name]
    assert main([*arguments, "--out", str(tmp_path / "r")]) == 2


def test_what_exists_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    file = emitted(tmp_path)
    arguments = ["package", str(file), "--format", "triton", "--out", str(tmp_path / "repo")]
    assert [main(arguments), main(arguments), main([*arguments, "--force"])] == [0, 2, 0]


def test_tensorrt_gets_its_line_with_the_limits(tmp_path: Path) -> None:
    file = emitted(tmp_path, Serving(target=ServingTarget.TENSORRT), part=3)
    arguments = [
        "package",
        str(file),
        "--format",
        "tensorrt",
        "--limit",
        "b=1:8:32",
        "--out",
        str(tmp_path / "t"),
    ]
    assert main(arguments) == 0
    words = shlex.split((tmp_path / "t/build.sh").read_text().splitlines()[-1])
    assert words[0] == "trtexec"
    assert {"--onnx=model.onnx", "--saveEngine=model.plan", "--skipInference"} <= set(words)
    assert words[-3:] == ["--minShapes=x:1x48", "--optShapes=x:8x48", "--maxShapes=x:32x48"]
    assert (tmp_path / "t/model.onnx").read_bytes() == file.read_bytes()


def test_tensorrt_refuses_bit_planes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = emitted(tmp_path)
    arguments = [
        "package",
        str(file),
        "--format",
        "tensorrt",
        "--limit",
        "b=1:8:32",
        "--out",
        str(tmp_path / "t"),
    ]
    assert main(arguments) == 2
    assert "W1_quantized is uint8 (bit planes)" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("limit", ["b", "b=1:2", "b=3:2:1", "=1:2:3", "b=0:1:2", "b=a:b:c"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: str) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    arguments = ["package", str(tmp_path / "m.onnx"), "--format", "tensorrt", "--limit", limit]
    assert main([*arguments, "--out", str(tmp_path / "t")]) == 2


def test_a_free_dimension_without_its_sizes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    arguments = ["package", str(tmp_path / "m.onnx"), "--format", "tensorrt", "--out", str(tmp_path / "t")]
    assert main(arguments) == 2
    assert "b=1:8:32" in capsys.readouterr().err


def test_olive_finds_the_pass_where_the_config_says(tmp_path: Path) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    arguments = ["package", str(tmp_path / "m.onnx"), "--format", "olive", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    config = json.loads((tmp_path / "o/olive_package.json").read_text())
    assert config == package_config()
    module, _, name = MODULE.rpartition(".")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    assert f"class {name}(Pass)" in Path(found.origin).read_text()
    run = json.loads((tmp_path / "o/olive_run.json").read_text())
    assert run["passes"]["tqs"]["type"] in config["passes"]


def olive_run(folder: Path, **changed: object) -> subprocess.CompletedProcess[str]:
    """Run Olive on the packaged example of a small model, in a folder and a process of its own."""
    if importlib.util.find_spec("olive") is None:
        pytest.skip("olive-ai is not installed")
    write_case(folder, forecaster(32, 64), steps=2)
    assert main(["package", str(folder / "m.onnx"), "--format", "olive", "--out", str(folder / "o")]) == 0
    run = json.loads((folder / "o/olive_run.json").read_text())
    run["passes"]["tqs"] |= {"compression": 2.0, **changed}
    (folder / "o/olive_run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "olive", "run", "--config", "o/olive_run.json"]
    quiet = {"OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [*command, "--package-config", "o/olive_package.json"],
        cwd=folder, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_olive_runs_the_pass_and_gets_the_smaller_file(tmp_path: Path) -> None:
    done = olive_run(tmp_path, gates=["compression>=2"])
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (tmp_path / "olive_out").rglob("model.onnx")
    assert made.stat().st_size * 2 <= (tmp_path / "m.onnx").stat().st_size
    assert "tqs_onnx.plan_sha256" in {e.key for e in onnx.load(made).metadata_props}
    x = values(2, 32)
    session = open_session(made, options=SessionOptions(threads=1))
    assert session.run({"x": session.value(x)})["y"].numpy().shape == (2, 32)


@pytest.mark.slow
def test_a_failed_gate_leaves_olive_without_a_model(tmp_path: Path) -> None:
    done = olive_run(tmp_path, gates=["drift<=1e-9"])
    assert "gate drift<=1e-9 failed" in done.stdout + done.stderr
    assert not list((tmp_path / "olive_out").rglob("*.onnx"))


def test_olive_itself_accepts_the_config() -> None:
    package = pytest.importorskip("olive.package_config", exc_type=ImportError)
    config = package.OlivePackageConfig.model_validate(package_config())
    assert config.get_pass_module_config("TqsQuantization").module_path == MODULE


def test_other_files_of_a_model_are_kept_and_stale_ones_are_not(tmp_path: Path) -> None:
    big = tmp_path / "in" / "m.onnx"
    big.parent.mkdir()
    save_model(Model(forecaster(48, 96), tmp_path), big, external=True)
    arguments = ["package", str(big), "--format", "triton", "--out", str(tmp_path / "r")]
    assert main(arguments) == 0
    for name in ("labels.txt", "2/model.onnx"):
        (tmp_path / "r/m" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "r/m" / name).write_text(name)
    save_model(Model(forecaster(48, 96), tmp_path), big, external=False)
    assert main([*arguments, "--force"]) == 0
    written = sorted(
        p.relative_to(tmp_path / "r").as_posix() for p in (tmp_path / "r").rglob("*") if p.is_file()
    )
    assert written == ["m/1/model.onnx", "m/2/model.onnx", "m/config.pbtxt", "m/labels.txt"]
    assert (tmp_path / "r/m/2/model.onnx").read_text() == "2/model.onnx"
    assert (tmp_path / "r/m/1/model.onnx").read_bytes() == big.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "r"]


def test_a_package_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = emitted(tmp_path / "in")
    arguments = ["package", str(file), "--format", "triton", "--out", str(tmp_path / "r")]
    assert main(arguments) == 0
    config = tmp_path / "r/m/config.pbtxt"
    before = config.read_bytes()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tqs_onnx.packaging.triton.write_text", full)
    assert main([*arguments, "--force", "--max-batch", "4"]) == 2
    assert main([*arguments, "--name", "other"]) == 2
    assert config.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["m"]


def test_control_characters_in_a_name_do_not_reach_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = forecaster(8, 8)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "x\0\x1b[31m"
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "x\0\x1b[31m" if name == "x" else name
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    out = tmp_path / "r"
    arguments = [
        "package",
        str(tmp_path / "m.onnx"),
        "--format",
        "tensorrt",
        "--limit",
        "b=1:2:3",
        "--out",
        str(out),
    ]
    assert main(arguments) == 2
    assert "a comma, a quote or a control character" in capsys.readouterr().err
    assert not out.exists()

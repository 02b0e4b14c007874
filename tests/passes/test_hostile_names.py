"""Hostile names of tensors and nodes survive or are refused: in files, in tables, in CSV, in what servers read."""

from __future__ import annotations

import csv
import json
import shlex
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.rollouts import forecaster, values
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.plan.plan import read_plan

#: Five a model: its weights W1, b1, W2, b2 and decay.
GROUPS = {
    "paths": ["../../etc/passwd", "/abs/olute", "a/b\\c", "C:\\con.onnx", "."],
    "markup": ["<script>alert(1)</script>", "&amp;\"'>", "[red]bold[/red]", "{{ 7 * 7 }}", "%s%n{0}"],
    "control": ["x\ny", "x\r\ty", "\x1b[2J\x07", "\u202egnp.exe", "x\u2028y"],
    "tables": ['=cmd|"/C calc"!A0', "a,b;c", 'q"u"o', "'; DROP TABLE scores;--", "-1+1"],
    "ours": ["W1_quantized", "tqs.0.0", "tqs", "W1_scale", "tqs.h1"],
    "sizes": ["n" * 10_000, "n" * 9_999 + "m", "\U0001f4a5", " ", "\x00"],
}
PLAIN = ["W1", "b1", "W2", "b2", "decay"]


def renamed(proto: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """Rename values of the main graph, and name every node after the first of them."""
    for index, node in enumerate(proto.graph.node):
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        node.name = f"{next(iter(names.values()))}{index}"
    for held in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        held.name = names.get(held.name, held.name)
    return proto


def quoted(name: str) -> str:
    return json.dumps(name).replace("\x7f", "\\u007f")  # a JSON string is a TOML string


def project(folder: Path, proto: onnx.ModelProto, x: str = "x", y: str = "y") -> list[str]:
    """Write a model and its contexts; return the arguments that quantize and score share."""
    onnx.save(proto, folder / "m.onnx")
    spec = f"""version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = {quoted(y)}
input = {quoted(x)}
mode = "replace"
[trajectory]
outputs = [{quoted(y)}]
"""
    (folder / "rollout.toml").write_text(spec, encoding="utf-8")
    for file, seed in (("contexts", 1), ("eval", 2)):
        (folder / file).mkdir()
        np.savez(folder / f"{file}.npz", **{x: values(2, 16, seed=seed)})
    return [
        "--rollout", str(folder / "rollout.toml"), "--contexts", str(folder / "contexts.npz"),
        "--eval-contexts", str(folder / "eval.npz"), "--threads", "1",
    ]  # fmt: skip


def require_harmless(text: str) -> None:
    """Hold what is printed to printable lines of bearable length, names in them escaped and shortened."""
    for line in text.splitlines():
        assert line.isprintable(), ascii(line)
        assert len(line) < 2000


@pytest.mark.parametrize("group", GROUPS)
def test_weights_and_nodes_of_any_name_go_all_the_way(
    group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(zip(PLAIN, GROUPS[group], strict=True))
    shared = project(tmp_path, renamed(forecaster(16, 1200), names))  # names of 10 kB still leave room
    run = tmp_path / "run"
    arguments = ["quantize", str(tmp_path / "m.onnx"), *shared, "--compression", "1.3", "--repair", "0"]
    arguments += ["--rounding", "unbiased", "--names", "keep"]  # short ones would not be seen
    assert main([*arguments, "--out", str(run)]) == 0
    shown = capsys.readouterr()
    require_harmless(shown.out)
    require_harmless(shown.err)
    assert [a.weight for a in read_plan(run / "plan.json").assignments] == GROUPS[group]
    with (run / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert all(None not in row and None not in row.values() for row in rows)
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["verification"]["n_decoded"] > 0
    assert {p.name for p in run.iterdir()} == {
        "m.tqs.onnx", "plan.json", "scores.json", "scores.csv", "manifest.json", "sweep.sqlite", "traces.npz"
    }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {
        "m.onnx", "rollout.toml", "contexts", "contexts.npz", "eval", "eval.npz", "run"
    }  # fmt: skip


def test_two_nodes_of_one_name_are_refused_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = forecaster()
    for node in proto.graph.node:
        node.name = "<b>\n" * 2_500
    shared = project(tmp_path, proto)
    arguments = ["quantize", str(tmp_path / "m.onnx"), *shared, "--compression", "0.5"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    require_harmless(shown)
    assert "two nodes with same node name" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("group", GROUPS)
def test_inspect_shows_them_on_printable_lines_and_as_json(
    group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(renamed(forecaster(), dict(zip(PLAIN, GROUPS[group], strict=True))), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    require_harmless(capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [w["name"] for w in document["weights"]] == GROUPS[group]


PORTS = [
    "../../etc/passwd",
    "<b>x</b>",
    "x\ny",
    'a"b\\c',
    "a,b=d",
    "a:0",
    "; rm -rf ~ #",
    "$(id)",
    "\u202egnp",
    "p" * 1500,
]


@pytest.mark.parametrize("name", PORTS, ids=lambda n: ascii(n[:12]))
def test_an_input_and_an_output_of_any_name_are_rolled_out_and_packaged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = name, f"{name}'"
    (tmp_path / "in").mkdir()
    shared = project(tmp_path / "in", renamed(forecaster(), {"x": x, "y": y}), x, y)
    file, run = tmp_path / "in/m.onnx", tmp_path / "run"
    assert main(["inspect", str(file)]) == 0
    draft = capsys.readouterr().out
    arguments = [
        "quantize",
        str(file),
        *shared,
        "--compression",
        "1.1",
        "--repair",
        "0",
        "--target",
        "ort-cpu",
    ]
    assert main([*arguments, "--out", str(run)]) == 0
    require_harmless(draft)
    require_harmless(capsys.readouterr().out)
    emitted = run / "m.tqs.onnx"
    assert main(["package", str(emitted), "--format", "triton", "--out", str(tmp_path / "t")]) == 0
    config = (tmp_path / "t/m/config.pbtxt").read_text(encoding="ascii")
    assert len(config.splitlines()) == len([line for line in config.splitlines() if line.isprintable()])
    code = main(
        ["package", str(file), "--format", "tensorrt", "--limit", "b=1:8:32", "--out", str(tmp_path / "r")]
    )
    if "," in name or not name.isprintable():  # trtexec has no way to write such a name
        assert code == 2
        assert not (tmp_path / "r").exists()
    else:
        assert code == 0
        line = (tmp_path / "r/build.sh").read_text(encoding="utf-8").partition('dirname "$0")"\n')[2]
        spelt = f"'{x}'" if ":" in x else x
        assert f"--minShapes={spelt}:1x16" in shlex.split(line)
    assert main(["package", str(emitted), "--format", "olive", "--out", str(tmp_path / "o")]) == 0
    assert {p.name for p in tmp_path.iterdir()} <= {"in", "run", "t", "r", "o"}


@pytest.mark.parametrize("name", ["x\ny", 'a"b\\c', "\x1b[2J", "=1+1", "<b>"], ids=ascii)
def test_a_drafted_rollout_spec_reads_back_with_its_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(renamed(forecaster(), {"x": name, "y": f"{name}'"}), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    draft = capsys.readouterr().out.partition("# Draft")[2]
    document = tomllib.loads(f"# Draft{draft}")
    assert [f["input"] for f in document["feedback"]] == [name]


@pytest.mark.parametrize("name", ["../w", "a\nb", "<b>", "n" * 10_000], ids=lambda n: ascii(n[:8]))
def test_external_data_lies_beside_the_file_whatever_the_weights_are_called(
    name: str, tmp_path: Path
) -> None:
    save_model(Model(renamed(forecaster(48, 96), {"W1": name}), tmp_path), tmp_path / "m.onnx", external=True)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"m.onnx.data"}
    open_session(tmp_path / "m.onnx", options=SessionOptions(threads=1))


@pytest.mark.parametrize(
    "metadata", [{"license": "<b>\n../x"}, {"": ""}, {"tqs_onnx.plan_sha256": "x"}, {"k" * 9999: "v" * 9999}]
)
def test_metadata_of_any_kind_are_kept_and_do_no_harm(metadata: dict[str, str], tmp_path: Path) -> None:
    proto = forecaster()
    helper.set_model_props(proto, metadata)
    shared = project(tmp_path, proto)
    arguments = ["quantize", str(tmp_path / "m.onnx"), *shared, "--compression", "1.2", "--repair", "0"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    kept = {e.key: e.value for e in onnx.load(tmp_path / "run/m.tqs.onnx").metadata_props}
    assert {k: kept[k] for k in metadata if not k.startswith("tqs_onnx.")}.items() <= metadata.items()
    assert len(kept["tqs_onnx.plan_sha256"]) == 64

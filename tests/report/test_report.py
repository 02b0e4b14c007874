"""The report as a file: what it holds, what it refuses, and that names from a model stay text."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from markupsafe import escape

from tests.report.conftest import HOSTILE, VARIABLES
from tqs_onnx.cli import flags as table
from tqs_onnx.cli.again import command_line
from tqs_onnx.cli.flag import nested
from tqs_onnx.cli.main import main
from tqs_onnx.jobs.options import QuantizeOptions, options_from, settings_of
from tqs_onnx.report.figures import text
from tqs_onnx.report.frontier_figures import series_names
from tqs_onnx.report.page import html_page
from tqs_onnx.report.run import read_run, read_runs
from tqs_onnx.report.words import picks_of, sentence_of, tiles_of, whys
from tqs_onnx.report.write import write_report
from tqs_onnx.verification.verdict import verdict
from tqs_passes.errors import InputError


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert [path.name for path in write_report([run], out)] == ["page.html", "card.md"]
    return out.read_text(encoding="utf-8")


def body(page: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_the_page_is_one_file_under_6_mb_that_names_no_address(page: str) -> None:
    assert len(page.encode()) < 6_000_000
    assert not re.search(r"<(?:link|img|iframe)|\ssrc=", body(page))
    assert "connect-src 'none'" in page


def test_the_sentence_and_the_four_figures_come_first(page: str, run: Path) -> None:
    v = read_run(run).manifest.verification
    assert str(escape(sentence_of("m.tqs.onnx", v))) in body(page)
    assert verdict(v) in sentence_of("m.tqs.onnx", v)
    assert [t.label for t in tiles_of(v)] == [
        "Size",
        "Drift from FP32",
        "Worst degradation",
        "Latency and peak memory",
    ]
    assert (
        body(page).index('class="sentence"') < body(page).index('class="tile"') < body(page).index("<section")
    )


def test_hostile_names_are_text(page: str) -> None:
    assert HOSTILE not in page
    assert str(escape(HOSTILE)) in page
    assert VARIABLES[0] not in page
    assert page.count("</script>") == 3


def test_the_data_of_the_charts_is_json(page: str) -> None:
    data = re.search(r'id="figures">(.*?)</script>', page, re.S)
    figures = json.loads(data.group(1))
    assert {"growth", "forecast", "weights", "roles", "concentration", "tiers"} <= figures.keys()
    assert len(figures["growth"]) == len(VARIABLES)
    names = [point[0] for trace in figures["weights"][0]["data"] for point in trace["customdata"]]
    assert text(HOSTILE) in names


def test_every_weight_says_why_it_has_its_tier(run: Path) -> None:
    found = read_run(run)
    reasons = whys(found.plan, found.scores)
    assert reasons.keys() == {a.weight for a in found.plan.assignments}
    first = max((w for w in found.scores.weights if w.gamma_task is not None), key=lambda w: w.gamma_task)
    assert "γ rank 1 of " in reasons[first.weight]


def test_a_gate_and_the_command_that_makes_the_run_again_are_shown(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    shown = body((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "compression ≥ 1 holds" in shown
    assert "tqs quantize ../m.onnx" in shown


def test_that_command_gives_the_same_plan(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_run(run).manifest
    line = command_line(manifest.settings)
    monkeypatch.chdir(run)
    words = shlex.split(line)[1:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main(words) == 0
    again = read_run(tmp_path / "again").manifest
    assert (again.plan_sha256, again.settings["options"]) == (
        manifest.plan_sha256,
        manifest.settings["options"],
    )


def test_options_of_every_kind_come_back_as_flags() -> None:
    given = {
        "compression": 6.5,
        "tiers": "FP32,INT8,INT4",
        "pin": ("head.*=INT8,FP16",),
        "compute": "fp16",
        "response_bits": "4,3",
        "gate": ("drift:p95<=0.2",),
        "save_traces": 2,
    }
    chosen = {**{f.key: None for f in table.QUANTIZE}, **given}
    options = options_from(
        nested([f for f in table.QUANTIZE if not f.path.startswith("data.")], chosen), QuantizeOptions
    )
    line = command_line(
        {"command": "quantize", "model": "m.onnx", "data": {}, "options": settings_of(options)}
    )
    for flag, value in (
        ("--compression", "6.5"),
        ("--tiers", "FP32,INT8,INT4"),
        ("--compute", "fp16"),
        ("--response-bits", "4,3"),
        ("--save-traces", "2"),
    ):
        assert f"{flag} {value}" in line
    assert "--pin 'head.*=FP16,INT8'" in line
    assert "--gate 'drift:p95<=0.2'" in line


def test_several_runs_are_compared(run: Path, frontier: Path, tmp_path: Path) -> None:
    write_report([run, frontier], tmp_path / "both.html")
    shown = body((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "2 runs compared" in shown
    assert 'data-table="points"' in shown


def test_a_frontier_alone_says_what_its_balanced_point_costs(frontier: Path, tmp_path: Path) -> None:
    write_report([frontier], tmp_path / "alone.html")
    assert "A frontier of 3 files; " in body((tmp_path / "alone.html").read_text(encoding="utf-8"))


def test_the_picks_of_a_frontier_are_its_closest_and_its_smallest(frontier: Path) -> None:
    pareto = read_run(frontier).pareto
    picks = {p.name: p.point for p in picks_of(pareto)}
    assert picks["closest"].drift_measured == min(p.drift_measured for p in pareto.points)
    assert picks["smallest"].n_bytes == min(p.n_bytes for p in pareto.points)


def test_tables_are_written_as_csv(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--format", "csv", "--out", str(tmp_path / "tables")]) == 0
    with (tmp_path / "tables/errors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variable"] for row in rows] == list(VARIABLES)
    errors = read_run(run).manifest.verification.errors
    assert float(rows[0]["MAE"]) == errors[VARIABLES[0]].file.mae


def test_the_card_has_front_matter_and_escapes_names(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "r.html")
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: onnx\n")
    assert "license: other" in card
    assert "\\<b\\>" in card
    assert VARIABLES[0] not in card


def test_runs_of_equal_names_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run"
    other.mkdir(parents=True)
    (other / "plan.json").write_text((run / "plan.json").read_text())
    names = [r.name for r in read_runs([run, other])]
    assert names == [f"{run.parent.name}/run", "other/run"]


def test_a_report_is_not_overwritten_unless_forced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    write_report([run], out)
    page, card = out.read_text(), tmp_path / "card.md"
    out.write_text(page.replace("a", "b"))
    with pytest.raises(InputError, match="already exists"):
        write_report([run], out)
    write_report([run], out, force=True)
    assert out.read_text() == page
    card.unlink()  # as if the first run had been stopped between the two files
    write_report([run], out)
    assert card.exists()


def test_a_report_never_replaces_a_file_it_read(run: Path) -> None:
    with pytest.raises(InputError, match="would overwrite an input"):
        write_report([run], run / "plan.json", force=True)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no scores.json, plan.json, manifest.json or pareto.json"):
        write_report([tmp_path])


def test_analyse_prints_one_table_of_several_runs(
    run: Path, frontier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", str(run), str(frontier), "--table", "points", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["points"]
    assert len(found["points"]["rows"]) == len(read_run(frontier).pareto.points)


def test_a_table_that_these_runs_do_not_allow_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", str(run), "--table", "gap"]) == 2
    assert "there is no table 'gap' for these runs" in capsys.readouterr().err


def test_scores_of_both_probes_stand_side_by_side(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = run.parent
    files = [
        "--rollout",
        str(case / "rollout.toml"),
        "--contexts",
        str(case / "contexts.npz"),
        "--threads",
        "1",
    ]
    assert (
        main(["score", str(case / "m.onnx"), *files, "--probe", "both", "--out", str(tmp_path / "both")]) == 0
    )
    capsys.readouterr()
    assert main(["analyse", str(tmp_path / "both"), "--table", "agreement", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["agreement"]["rows"]
    assert [(r["run"], r["other run"], r["they differ in"]) for r in rows] == [
        ("both", "both (gauss)", "probes")
    ]


def test_a_series_is_named_by_what_sets_it_apart(frontier: Path) -> None:
    point = read_run(frontier).pareto.points[0].model_copy(update={"objective": "energy"})  # type: ignore[union-attr]
    made = [
        point.model_copy(update={"solver": "mckp", "scores": "quant"}),
        point.model_copy(update={"solver": "mckp", "scores": "gauss"}),
        point.model_copy(update={"objective": "uniform", "solver": "gptq"}),
    ]
    assert series_names(made) == ["energy, mckp, quant", "energy, mckp, gauss", "uniform, gptq"]
    assert series_names(made[:1]) == ["energy, mckp"]
    assert series_names(made[2:]) == ["uniform, gptq"]


def test_frontiers_of_one_model_are_one_and_of_others_a_choice(frontier: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(frontier, again)
    held = json.loads((again / "pareto.json").read_text())
    page = html_page(read_runs([frontier, again]), {})
    assert f"A frontier of {2 * len(held['points'])} files" in page
    (again / "pareto.json").write_text(json.dumps(held | {"source_sha256": "0" * 64}))
    page = html_page(read_runs([frontier, again]), {})
    assert f"Frontiers of 2 models, {2 * len(held['points'])} files in all." in page
    assert "<option>again: drift</option>" in page

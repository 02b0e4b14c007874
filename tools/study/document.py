"""Writes STUDY.md and the CSV files beside it from finished runs."""

from __future__ import annotations

from pathlib import Path

from tools.study import allocation_sections, error_sections, quantile_heads, rollout_sections, sensitivity
from tools.study.frontiers import FRONTIER_RUNS
from tools.study.protocols import Size
from tools.study.runs import Runs
from tools.study.section import Section, claim_table, command_table
from tqs_onnx.report.write import write_report

HEAD = """# The paper's tables and claims, on the models of this repository

Made by `python -m tools.study --runs RUNS --out models/zoo`; no figure here is typed by hand but those of the paper.
Small models trained on public data stand for the paper's: what holds here need not hold for the big ones, and the other
way round. **False** means: not here. [docs/paper.md](../../docs/paper.md) has the command of every table for your own
model.

| the paper's protocol (A.1.4, A.4, A.5) | here |
|---|---|
| TimesFM-2.5: windows of 512, 500 values; probe 6 bits; FP32 to INT2 | timesfm_mini: the same in four calls |
| Aurora-small: 120 steps of 6 h; probe 6 bits; FP32 to INT1 | aurora_mini: {steps} steps, {judging} starts in 2007 |
| Pangu-Weather: scored over 24 h, judged at 6 h; probe 8 bits; FP32, BF16, INT8 | pangu_mini: the same |
| – | lorenz96: the bundled demo, 40 steps |

C is the compression of the weights, scales and tables included. Every plan follows the paper: its objective, integers
rounded to nearest, no repair; [BASELINES.md](BASELINES.md) has our own objectives. Drift is in deviations of each
variable.

## Claims

{claims}
"""
TAIL = """## The runs

{commands}
`*`: stopped and resumed, the seconds are those of the last part. Paths start in RUNS; `$TQS_DATA` is that of
[docs/data.md](../../docs/data.md).
"""


def sections(runs: Runs, size: Size) -> list[Section]:
    """Return every section, in the order of the paper's tables, then of its appendices."""
    scores = sensitivity.both(runs)
    known = rollout_sections.verified(runs)
    return [
        allocation_sections.cost(runs),
        sensitivity.dead(scores),
        allocation_sections.ablations(runs),
        allocation_sections.allocator(runs),
        sensitivity.spread(scores),
        sensitivity.concentration(scores),
        sensitivity.agreement(runs),
        error_sections.gaps(runs),
        allocation_sections.protected(runs),
        rollout_sections.growth(runs, known),
        sensitivity.transfer(runs, size.tables),
        allocation_sections.sizes(runs),
        allocation_sections.bottom(runs, size.floors),
        error_sections.matched(runs),
        error_sections.grids(runs),
        sensitivity.roles(scores),
        rollout_sections.curvature(runs),
        rollout_sections.bands(runs, known),
        sensitivity.structure(scores),
        quantile_heads.section(runs),
    ]


def write(runs: Runs, size: Size, out: Path) -> list[Path]:
    """Write STUDY.md and study/*.csv into a folder, and a report of the runs beside them; return the files."""
    made = sections(runs, size)
    head = HEAD.format(steps=size.steps, judging=size.long_judging, claims=claim_table(made))
    parts = [head, *(s.text() for s in made), TAIL.format(commands=command_table(runs, made))]
    texts = {out / "STUDY.md": "\n".join(parts)}
    texts |= {out / "study" / f"{name}.csv": table.to_csv() for s in made for name, table in s.tables}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shown = [runs.folder / name for name in (*sensitivity.SCORED.values(), *FRONTIER_RUNS)]
    return [*texts, *write_report(shown, runs.folder / "report.html", force=True)]

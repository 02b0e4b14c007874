"""Writes models/zoo/RESULTS.md: skill of the zoo, γ by role, and which of the paper's claims hold for it.

Usage, from the repository root, with the data (see models/zoo/*/card.md) and h5py::

    python -m tools.study.zoo_results --runs FOLDER --out models/zoo/RESULTS.md [--only gates]

With `--only gates` the section on gates of an existing file is written anew, and the others stay.
Scores are stored in FOLDER and reused: delete it to start over. The study takes about 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from tools.study import claims, gates
from tools.study.markdown import Table, markdown, verdict
from tools.study.scored import DRAWS, STARTS, Study
from tools.study.zoo import GRIDS, ZOO, zoo_module
from tqs_onnx.inputs.data import DataOptions, read_spec
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.scores import Scores
from tqs_passes.grids.grid import grids_for
from tqs_passes.grids.nearest import quantize

MODELS = ("timesfm_mini", *GRIDS)
PROBES = ("quant", "gauss")
PAPER_SHARE = (0.17, 0.24)
PAPER_RHO = 0.7
NOTHING = 1e-3
"""A drift below this, a thousandth of a standard deviation, counts as none."""


class Results:
    """The scores of all models, and the sections computed from them."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.tensors = {m: {s: study.scores(m, s) for s in study.sets(m)} for m in MODELS}
        self.blocks = {m: study.scores(m, study.sets(m)[0], blocks=True) for m in MODELS}

    def first(self, model: str, probe: str) -> Scores:
        """Return the scores of a model on its first set."""
        return self.tensors[model][self.study.sets(model)[0]][probe]

    def roles(self) -> tuple[str, dict[str, list[bool]]]:
        """Return the table of percentiles by role, and for each row whether I/O leads."""
        rows: Table = []
        leads: dict[str, list[bool]] = {"all": [], "matrices": []}
        for model in MODELS:
            for probe in PROBES:
                for kind in leads:
                    table = claims.by_role(self.first(model, probe), matrices=kind == "matrices")
                    leads[kind].append(claims.io_leads(table))
                    cells = [
                        f"{table[r][1]:.0f} ({table[r][0]})" if r in table else "–" for r in claims.ROLES
                    ]
                    best = max(table, key=lambda r: table[r][1]).value
                    rows.append([model, probe, kind, *cells, best, "yes" if leads[kind][-1] else "no"])
        head = [
            "model",
            "probe",
            "weights",
            *(r.value for r in claims.ROLES),
            "highest",
            "both io above body",
        ]
        return markdown(head, rows), leads

    def transfer(self) -> tuple[str, dict[str, float]]:
        """Return the table of rank correlations between sets, and the minimum of each row."""
        rows: Table = []
        least: dict[str, float] = {}
        for model in MODELS:
            for probe in PROBES:
                rho = claims.transfer({s: found[probe] for s, found in self.tensors[model].items()})
                worst = min(rho, key=lambda pair: rho[pair])
                least[f"{model}, {probe}"] = rho[worst]
                cells = [f"{np.mean(list(rho.values())):.2f}", f"{rho[worst]:.2f}", " – ".join(worst)]
                rows.append([model, probe, str(len(rho)), *cells])
        return markdown(["model", "probe", "pairs", "mean ρ", "least ρ", "of the pair"], rows), least

    def concentration(self) -> tuple[str, dict[str, float]]:
        """Return the table of shares, and the share of the top tenth of the weights."""
        rows: Table = []
        top: dict[str, float] = {}
        for model in MODELS:
            for probe in PROBES:
                for kind, scores in (
                    ("weights", self.first(model, probe)),
                    ("blocks", self.blocks[model][probe]),
                ):
                    shares = [claims.share(scores, f) for f in (0.1, 0.25, 0.5)]
                    if kind == "weights":
                        top[f"{model}, {probe}"] = shares[0]
                    n = len(claims.targets(scores))
                    rows.append([model, probe, f"{n} {kind}", *(f"{100 * s:.1f} %" for s in shares)])
        return markdown(["model", "probe", "of", "top 10 %", "top 25 %", "top 50 %"], rows), top

    def agreement(self) -> tuple[str, list[tuple[float, float]]]:
        """Return the table of the agreement of the probes, over weights and over blocks."""
        rows: Table = []
        pairs: list[tuple[float, float]] = []
        for model in MODELS:
            fine = claims.spearman(self.first(model, "quant"), self.first(model, "gauss")) or 0.0
            coarse = claims.spearman(self.blocks[model]["quant"], self.blocks[model]["gauss"]) or 0.0
            n = len(claims.targets(self.blocks[model]["quant"]))
            mean, n_mean = claims.mean_agreement(self.first(model, "quant"), self.first(model, "gauss"))
            pairs.append((fine, mean))
            rows.append([model, f"{fine:.3f}", f"{mean:.3f} ({n_mean})", f"{coarse:.3f} ({n})"])
        head = ["model", "over weights", "over blocks of 8, means", "over residual chains, probed together"]
        return markdown(head, rows), pairs

    def insensitive(self) -> tuple[str, list[float]]:
        """Return the table of weights that move nothing, and the effect of reducing them to one bit."""
        rows: Table = []
        drifts: list[float] = []
        for model in MODELS:
            first = self.tensors[model][self.study.sets(model)[0]]
            gone = claims.insensitive(first.values())
            if not gone:
                rows.append([model, "none", "–", "–", "–"])
                continue
            others = claims.weakest(first["quant"], len(gone), gone)
            strong = [
                w.weight for w in sorted(claims.targets(first["quant"]), key=lambda w: w.gamma_task or 0)
            ]
            dropped = [
                drift(self.study, model, first["quant"], names)
                for names in (gone, others, strong[-len(gone) :])
            ]
            drifts.append(dropped[0])
            rows.append([model, ", ".join(sorted(gone.values())), *(f"{d:.2g}" for d in dropped)])
        head = [
            "model",
            "dead or below the floor",
            "drift, these at 1 bit",
            "the weakest others",
            "the strongest",
        ]
        return markdown(head, rows), drifts


def drift(study: Study, model: str, scores: Scores, names: list[str] | dict[str, str]) -> float:
    """Return the drift on test contexts if the named weights have one bit per value and one scale per tensor."""
    folder = ZOO / model
    source = open_source(folder / "model.onnx")
    where = study.contexts(model, "test" if model in GRIDS else study.sets(model)[0])
    spec = read_spec(DataOptions(folder / "rollout.toml", where[0]), source)
    contexts = load_contexts(where[0], spec, source.signature, split="test", limit=where[1])
    run = RunOptions("cpu", threads=study.threads)
    bed = Testbed(source.lifted, source.survey, spec, contexts, run, scores.sigma)
    coarse = {
        w.name: quantize(np.asarray(bed.exposed.values(w), np.float32), 1, None, grids_for(1)[0]).decode()
        for w in bed.weights
        if w.name in set(names)
    }
    return bed.drift(bed.exposed.pieces(coarse))


def skill() -> str:
    """Return the skill tables of the three cards, measured again."""
    parts: list[str] = []
    gulf, evaluate = zoo_module("gulf"), zoo_module("gulf_evaluate")
    judge = gulf.Judge(gulf.load_gulf(gulf.data_folder()), "test", steps=8)
    for name in GRIDS:
        made = evaluate.forecasts(ZOO / name / "model.onnx", judge, gulf.HISTORY[name])
        parts.append(f"### {name}, ERA5 of 2007\n\n" + gulf.skill_table(judge, made, name))

    sys.path.insert(0, str(ZOO / "timesfm_mini"))
    data, tables = zoo_module("data"), zoo_module("evaluate")
    session = open_session(ZOO / "timesfm_mini" / "model.onnx", options=SessionOptions(threads=1))
    rows: Table = []
    for table in data.load_tables():
        n, model, last, day = tables.errors(session, table)
        daily = f"{day:.3f}" if table.season > 1 else "(the same)"
        rows.append([table.name, str(n), f"{model:.3f}", f"{last:.3f}", daily, f"{model / last:.3f}"])
    head = ["table", "windows", "MAE", "persistence", "last day repeated", "MAE / persistence"]
    parts.append("### timesfm_mini, test rows, 500 values ahead\n\n" + markdown(head, rows))
    return "\n".join(parts)


def kept_skill(study: Study) -> str:
    """Return the skill tables, measured once per folder of runs."""
    path = study.folder / "skill.md"
    if not path.is_file():
        path.write_text(skill(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def document(study: Study) -> str:
    """Return RESULTS.md."""
    results = Results(study)
    roles, leads = results.roles()
    transfer, least = results.transfer()
    concentration, top = results.concentration()
    agreement, pairs = results.agreement()
    dead, drifts = results.insensitive()
    inside = sum(PAPER_SHARE[0] <= s <= PAPER_SHARE[1] for s in top.values())
    rows = [
        *(
            [
                f"I/O modules rank highest ({name})",
                verdict(all(found)),
                f"both io buckets above every body bucket for {sum(found)} of {len(found)} models and probes",
            ]
            for name, found in (("all weights", leads["all"]), ("matrices alone", leads["matrices"]))
        ),
        [
            "the ranking transfers between sets (ρ ≥ 0.7)",
            verdict(min(least.values()) >= PAPER_RHO),
            f"least ρ of any pair of sets {min(least.values()):.2f}",
        ],
        [
            "the top 10 % carry 17–24 % of the γ-shift",
            verdict(inside == len(top)),
            f"{100 * min(top.values()):.1f}–{100 * max(top.values()):.1f} %; {inside} of {len(top)} inside",
        ],
        [
            "gauss and quant agree better on blocks (means of 8) than on weights",
            verdict(all(coarse > fine for fine, coarse in pairs)),
            "; ".join(f"{m}: {a:.2f} → {b:.2f}" for m, (a, b) in zip(MODELS, pairs, strict=True)),
        ],
        [
            "dead weights cost nothing",
            verdict(bool(drifts) and max(drifts) < NOTHING),
            f"largest drift {max(drifts):.2g} σ at 1 bit; few weights here are dead"
            if drifts
            else "no weight is dead",
        ],
    ]
    return TEXT.format(
        claims=markdown(["claim of the paper", "here", "figure"], rows),
        roles=roles,
        gates=gate_section(study),
        transfer=transfer,
        concentration=concentration,
        agreement=agreement,
        dead=dead,
        skill=kept_skill(study),
        draws=DRAWS,
        starts=STARTS // 2,
    )


def gate_section(study: Study) -> str:
    """Return the section on the gates of the recurrent models."""
    tables = "\n".join(markdown(head, rows) for head, rows in gates.section(study))
    return GATES.format(tables=tables, draws=DRAWS).rstrip() + "\n"


def with_gates(text: str, section: str) -> str:
    """Return RESULTS.md with another section on gates, before that on transfer."""
    start = text.find(GATES.splitlines()[0])
    end = text.index("## Transfer")
    return text[: end if start < 0 else start] + section + "\n" + text[end:]


GATES = """## γ by gate

The recurrent models, with one weight per gate (`tqs inspect --split-gates`): γ_task on validation rows, quant probe at
6 bits, in brackets gauss probe with {draws} draws. Gates of LSTM and GRU as ONNX packs them; a bias has them twice, for
the input and for the `state`. The cell of the decoder is made of products: its gates are the parts that Split returns.
The first table has the mean percentile of γ_task (100: the most sensitive) of each gate's matrices, their number in
brackets.

{tables}"""

TEXT = """# What the models of the zoo show

Made by `python -m tools.study.zoo_results --runs RUNS --out models/zoo/RESULTS.md`; no figure here is typed by hand.
Three small models trained on real data, so what holds here need not hold for the big ones, and the other way round.

Scores: γ_task (Eq. 1) of every weight by itself, quant probe at 6 bits, gauss probe with {draws} draws; on
validation rows. timesfm_mini: six tables, 4 calls (500 values), two contexts a column (weather: one). pangu_mini and
aurora_mini: 8 steps of 6 h, {starts} starts of the first half of October to December 2006 (early) and {starts} of the
second (late).

## The paper's claims

{claims}
## γ by role bucket (A.8)

Mean percentile of γ_task (100: the most sensitive), number of weights in brackets, on the first set of each model.
Roles are those that `tqs inspect` finds. "matrices" leaves out biases, norms and other vectors.

{roles}
{gates}
## Transfer of the ranking (A.11.2)

Spearman's ρ of γ_task between sets, over all weights.

{transfer}
## Concentration (Table 5)

Share of the summed γ − γ_min that the top of the ranking carries; a uniform distribution gives 10, 25 and 50 %.

{concentration}
## Probes (Table 6)

Spearman's ρ between the quant and the gauss ranking: over weights; over blocks as the paper has them (8 weights in the
order of the file, the mean of their γ); over residual chains perturbed as one (`--blocks auto`). Number of blocks in
brackets. Over weights the probes agree far better here than in the paper's Aurora (0.57).

{agreement}
## Dead weights

Weights whose probe moved nothing beyond the floor on the first set, and the drift on test contexts when they get one
bit a value; beside it the same done to as many alive weights of the lowest and of the highest γ_task.

{dead}
In aurora_mini the biases of separate keys are insensitive because Softmax removes them. Its modulators of norms, which
are dead in the paper's Aurora, are not dead here: fed with a constant, they are the norms' trained scales.

## Skill

RMSE is weighted by the cosine of latitude; ACC is the correlation of anomalies about the climatology of the training
rows. timesfm_mini: mean absolute error in deviations of each column.

{skill}"""


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write models/zoo/RESULTS.md.")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the scores, made when missing")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["gates"], help="write this section of an existing file anew")
    a = parser.parse_args()
    study = Study(a.runs, a.threads)
    only_gates = a.only == "gates"
    text = with_gates(a.out.read_text("utf-8"), gate_section(study)) if only_gates else document(study)
    a.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

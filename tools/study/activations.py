"""Writes the section on activations of models/zoo/RESULTS.md: how the forecast responds to inputs rounded to 8 bits.

Every model of the zoo and the demo; the input of each MatMul, plain Gemm and LSTM is rounded at every call of the
rollout, one at a time, all weights FP32 (`tqs_onnx.scoring.activations`). Other sections of the file stay as they are.
Needs the data (see models/zoo/*/card.md); about two minutes on one core. Usage::

    python -m tools.study.activations --runs FOLDER --out models/zoo/RESULTS.md
"""

from __future__ import annotations

import argparse
import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.study.scored import Study
from tools.study.zoo import ZOO, data_root
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.activations import score_activations
from tqs_onnx.scoring.plan.options import default_horizons
from tqs_onnx.scoring.scores import ActivationScore

TITLE = "## Activations"
DEMO = ZOO.parent / "tqs_models/lorenz96"
SHOWN = 3
EXPLAINED = """
The input of every reader of a matrix is rounded to 8 bits at every call, one reader at a time, everything else in FP32
({contexts} contexts each, uint8 with one scale a call). γ_task as for weights: ln A / T, A the squared divergence over
the squared rounding errors of all steps. *Growth* above 0: an early rounding error weighs more than a late one, because
the rollout amplifies it. *Drift*: what one rounded input costs the forecast, in σ; *all*: as if they did not meet. Both
matrices of an LSTM share one rollout, which rounds its states too. onnxruntime multiplies no GRU as integers, so of
`gru_weather` only the head is listed, and of `seq2seq_ett`, whose decoder is a Scan, only the encoder.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured for one model."""

    source: Source
    rows: tuple[ActivationScore, ...]
    steps: int
    n_values: int
    n_contexts: int

    def drift(self, rows: list[ActivationScore]) -> float:
        """Return the drift of these rounded inputs, as if their errors did not meet."""
        return math.sqrt(sum(r.energy for r in rows) / self.n_values)


def measured(name: str, study: Study, most: int) -> Found:
    """Score the activations of a model on its usual contexts."""
    folder = DEMO if name == "lorenz96" else ZOO / name
    tables = {"lstm_ett": "ETT-small/ETTm1.csv.gz", "seq2seq_ett": "ETT-small/ETTm1.csv.gz"}
    tables |= {"gru_weather": "weather/weather.csv.gz", "timesfm_mini": "ETT-small/ETTh1.csv.gz"}
    if name == "lorenz96":
        contexts = DEMO / "contexts.npz"
    elif name in tables:
        contexts = data_root() / tables[name]
    else:
        contexts = study.contexts(name, "early")[0]
    source = open_source(folder / "model.onnx")
    options = DataOptions(folder / "rollout.toml", contexts, max_contexts=most)
    data = read_data(options, source, scoring_only=True)
    bed = Testbed(
        source.lifted, source.survey, data.spec, data.scoring, RunOptions("cpu", threads=study.threads)
    )
    steps = data.spec.rollout.steps
    rows = score_activations(bed, bed.sigma, default_horizons(steps))
    n_values = bed.ruler.n_values
    bed.close()
    return Found(source, rows, steps, n_values, data.scoring.n_contexts)


def section(found: dict[str, Found]) -> str:
    """Return the section."""
    counts = sorted({f.n_contexts for f in found.values()})
    lines = [TITLE, EXPLAINED.format(contexts=" to ".join(map(str, counts[:1] + counts[1:][-1:])))]
    lines += [
        "| model | steps | inputs | γ_task, median | growth, median | drift of all | the most sensitive, their drift |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, f in found.items():
        gammas = [r.gamma_task for r in f.rows if r.gamma_task is not None]
        growth = [r.growth for r in f.rows if r.growth is not None]
        top = sorted(f.rows, key=lambda r: (-r.energy, r.weight))[:SHOWN]
        shown = ", ".join(f"`{r.label}` {f.drift([r]):.2g}" for r in top)
        lines.append(
            f"| {name} | {f.steps} | {len(f.rows)} | {median(gammas):.3g} "
            f"| {f'{median(growth):.2g}' if growth else '–'} | {f.drift(list(f.rows)):.2g} | {shown} |"
        )
    early = sum(median(r.growth for r in f.rows if r.growth is not None) > 0 for f in found.values())
    lines.append(
        f"\nThe median growth is above 0 in {early} of {len(found)} models: there the early steps decide."
    )
    lines += ["\nShare of Σ ‖ΔY‖² by the role of the matrix that the input meets:\n"]
    roles = ("io.input", "body.attn", "body.ffn", "body.other", "io.output")
    lines += [f"| model | {' | '.join(roles)} |", "|---|" + "---:|" * len(roles)]
    for name, f in found.items():
        known = f.source.survey.by_name()
        shares: dict[str, float] = defaultdict(float)
        for r in f.rows:
            shares[known[r.weight].role.value] += r.energy
        total = sum(shares.values())
        cells = (f"{100 * shares[role] / total:.0f} %" if role in shares else "–" for role in roles)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def replaced(text: str, new: str) -> str:
    """Return a document with its section on activations replaced, or added at the end."""
    before, found, rest = text.partition(f"{TITLE}\n")
    if not found:
        return f"{text.rstrip()}\n\n{new}"
    after = rest.partition("\n## ")
    return before + new + (f"\n## {after[2]}" if after[1] else "")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--runs", type=Path, required=True, help="Contexts of the grid models are kept here."
    )
    arguments.add_argument("--out", type=Path, help="The document; default: print the section.")
    arguments.add_argument("--max-contexts", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    logging.basicConfig(level=logging.WARNING)
    names = (
        "timesfm_mini",
        "pangu_mini",
        "aurora_mini",
        "lstm_ett",
        "seq2seq_ett",
        "gru_weather",
        "lorenz96",
    )
    study = Study(options.runs, options.threads)
    text = section({name: measured(name, study, options.max_contexts) for name in names})
    if options.out:
        options.out.write_text(replaced(options.out.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()

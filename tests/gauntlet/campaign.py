"""Attack the project and print what became of it.

    python -m tests.gauntlet [--attacks N] [--seed N] [--kills STEP] [--workers N]

The exit code is 1 if anything in the column "bad" is not zero. An attack is repeated by its kind and number:
`python -m tests.gauntlet --only "plans and codes" --seed 17 --attacks 1`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import tqs_onnx.inputs.drafting
import tqs_onnx.rollout.crash_check
from tests.gauntlet import attacks, inputs
from tests.gauntlet.commands import COMMANDS, FILES, WHOLE, command_of
from tests.gauntlet.kills import killed_at_every_event
from tests.rollouts import forecaster, write_case

#: Every kind of attack, and its share of all.
KINDS = attacks.KINDS | inputs.KINDS
#: An attack that takes longer than this is bad.
MOST_S = 60.0
#: Attacks that a worker takes at once.
_PART = 80


@dataclass
class Row:
    """What became of the attacks of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def add(self, more: Row) -> None:
        """Add what became of further attacks."""
        self.outcomes.update(more.outcomes)
        self.bad += more.bad
        self.longest_s = max(self.longest_s, more.longest_s)


def prepare() -> None:
    """Leave out the child processes that try a model first: seconds each, and no attack rolls its model out."""
    tqs_onnx.rollout.crash_check.loads_in_child = lambda *_: None
    tqs_onnx.inputs.drafting._asked = lambda *_: "the gauntlet makes no trial calls"


def attacked(kind: str, numbers: range) -> Row:
    """Run the attacks of one kind with these numbers."""
    attack, _ = KINDS[kind]
    row = Row()
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="tqs-attack-") as name:
            folder, start = Path(name), time.process_time()
            try:
                row.outcomes[attack(folder, random.Random(f"{kind} {number}"))] += 1
            except Exception as error:  # noqa: BLE001  (that is what is counted)
                row.outcomes["bad"] += 1
                row.bad.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
            taken_s = time.process_time() - start
            left = [p for p in folder.rglob(".tqs") if p.is_dir()]
            if taken_s > MOST_S or left:
                row.outcomes["bad"] += 1
                row.bad.append(
                    f"{kind} {number}: {taken_s:.0f} s of CPU, {len(left)} folders of temporary files left"
                )
            row.longest_s = max(row.longest_s, taken_s)
    return row


def killed(step: int, names: Iterable[str] = COMMANDS) -> dict[str, Row]:
    """Kill commands at every `step`-th of their file-system events."""
    rows: dict[str, Row] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="tqs-kill-") as folder:
            inputs = Path(folder) / "in"
            case = write_case(inputs, forecaster(16, 24), n=1, steps=2)
            out = Path(folder) / "out"
            arguments = [*command_of(name, case, inputs), "--out", str(out / FILES.get(name, ""))]
            found = killed_at_every_event(
                Path(folder), out, arguments, step=step, whole=name in WHOLE, there=name in FILES
            )
            rows[f"killed: {name}"] = Row(Counter(done=found.kills, bad=len(found.bad)), found.bad)
    return rows


def table(rows: dict[str, Row]) -> str:
    """Return the table of attacks, in Markdown."""
    lines = ["| attacks | number | refused | done | bad | longest, s of CPU |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for name, row in rows.items():
        n = row.outcomes["refused"] + row.outcomes["done"]
        counts = f"{row.outcomes['refused']} | {row.outcomes['done']} | {row.outcomes['bad']}"
        lines.append(f"| {name} | {n} | {counts} | {row.longest_s:.1f} |")
        total.update(row.outcomes)
    n = total["refused"] + total["done"]
    lines.append(f"| all | {n} | {total['refused']} | {total['done']} | {total['bad']} | |")
    return "\n".join(lines)


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gauntlet", description="Attack the project.")
    parser.add_argument("--attacks", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument(
        "--kills", type=int, default=0, metavar="STEP", help="kill at every STEP-th file event; 0: none"
    )
    given = parser.parse_args(arguments)
    rows: dict[str, Row] = {}
    parts: list[tuple[str, range]] = []
    for kind, (_, share) in KINDS.items():
        if given.only in (None, kind):
            rows[kind] = Row()
            stop = given.seed + (given.attacks if given.only else round(given.attacks * share))
            parts += [(kind, range(i, min(stop, i + _PART))) for i in range(given.seed, stop, _PART)]
    with ProcessPoolExecutor(given.workers, get_context("spawn"), initializer=prepare) as pool:
        for (kind, _), row in zip(parts, pool.map(attacked, *zip(*parts, strict=True)), strict=True):
            rows[kind].add(row)
            print(f"{kind}: {dict(rows[kind].outcomes)}", file=sys.stderr, flush=True)
    if given.kills:
        rows |= killed(given.kills)
    print(table(rows))
    bad = [line for row in rows.values() for line in row.bad]
    print(*bad, sep="\n", file=sys.stderr)
    return 1 if bad else 0

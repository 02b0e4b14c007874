"""Runs commands of the study once, each into a folder of its own, and keeps what they cost.

A folder with `done.json` is finished: its command is not run again; a command that was stopped goes on. The seconds of
CPU are those of this process, so they hardly depend on what else the machine does.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.study.zoo import ZOO, data_root
from tqs_onnx.cli.main import main as tqs

DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command cost: its line, with short paths, and seconds on the clock and of CPU.

    `resumed`: it was stopped before; the seconds are those of its last part.
    """

    command: str
    wall_s: float
    cpu_s: float
    resumed: bool


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a study.

    Parameters
    ----------
    folder : Path
        Holds a folder for every run.
    threads : int
    """

    folder: Path
    threads: int = 1

    def run(self, name: str, *arguments: str | Path, out: str = "--out", file: str = "") -> Path:
        """Run a command of tqs unless it is done, and return its folder.

        Parameters
        ----------
        name : str
            Folder of the run.
        arguments : str or Path
            Words of the command, without where it writes and on what machine.
        out : str
            The option that says where it writes.
        file : str
            The file in the folder that the option names; empty if it names the folder.
        """
        folder = self.folder / name
        if (folder / DONE).is_file():
            return folder
        resumed = folder.exists()
        if file:
            folder.mkdir(parents=True, exist_ok=True)
        words = [str(a) for a in arguments]
        machine = ["--providers", "cpu", "--threads", str(self.threads)]
        line = [*words, *machine, out, str(folder / file) if file else str(folder)]
        start, used = time.perf_counter(), time.process_time()
        print(f"{name}: tqs {shlex.join(line)}", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = tqs([*line, "--json"])
        if code:
            raise SystemExit(f"tqs {shlex.join(line)} ended with {code}")
        cost = Cost(
            self._short([*words, out, name]), time.perf_counter() - start, time.process_time() - used, resumed
        )
        (folder / "printed.json").write_text(printed.getvalue(), encoding="utf-8")
        (folder / DONE).write_text(json.dumps(asdict(cost), indent=1) + "\n", encoding="utf-8")
        return folder

    def cost(self, name: str) -> Cost:
        """Return what a finished run cost."""
        return Cost(**json.loads((self.folder / name / DONE).read_text(encoding="utf-8")))

    def _short(self, words: list[str]) -> str:
        """Return a command with the paths that a reader can follow."""
        text = "tqs " + shlex.join(words)
        for path, short in ((self.folder, ""), (data_root(), "$TQS_DATA"), (ZOO.parents[1], "")):
            text = text.replace(f"{path}/", f"{short}/" if short else "")
        return text

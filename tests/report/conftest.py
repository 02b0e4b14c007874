"""A run of a small model whose names are hostile, made once for all tests of the report."""

from pathlib import Path

import pytest

from tests.rollouts import forecaster, write_case
from tqs_onnx.cli.main import main

#: Names that a page could take for markup, and a script for code.
HOSTILE = '<script>alert("x")</script>'
VARIABLES = ('<b>"a"&amp;</b>', "b'${y}\\u003c/script>")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized run with truth, traces and gates."""
    folder = tmp_path_factory.mktemp("report")
    proto = forecaster()
    for tensor in proto.graph.initializer:
        if tensor.name == "W2":
            tensor.name = HOSTILE
    for node in proto.graph.node:
        node.input[:] = [HOSTILE if name == "W2" else name for name in node.input]
    # TOML's literal strings hold anything but their own quotes.
    more = "".join(
        f"[[variable]]\nname = '''{name}'''\noutput = \"y\"\nunit = \"K\"\naxis = 1\nindex = {i}\n"
        for i, name in enumerate(VARIABLES)
    )
    case = write_case(folder, proto, n=6, more=more)
    made = ["quantize", str(case.model), *case.arguments("--compression", "2", "--max-drift", "9")]
    assert main([*made, "--gate", "compression>=1", "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def frontier(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep from the scores of the run."""
    case = run.parent
    out = tmp_path_factory.mktemp("sweep") / "frontier"
    files = ["--rollout", str(case / "rollout.toml"), "--contexts", str(case / "contexts.npz")]
    files += [
        "--eval-contexts",
        str(case / "eval.npz"),
        "--threads",
        "1",
        "--scores",
        str(run / "scores.json"),
    ]
    assert (
        main(["sweep", str(case / "m.onnx"), *files, "--compressions", "1.5,2,2.6", "--out", str(out)]) == 0
    )
    return out

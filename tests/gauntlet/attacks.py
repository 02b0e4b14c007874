"""Attacks as generators: each attack is a number, and the same number is the same attack.

An attack prepares files in an empty folder and runs something on them. The outcome is `refused` (one clear line),
`done` (and what was made is checked), or it raises: then it is bad.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.cli.test_fuzz import MUTATIONS, flipped, mutated_plan, sources
from tests.gauntlet import stores
from tests.gauntlet.bombs import concat_bomb, endless_loop, function_bomb, function_loop
from tests.rollouts import REPLACE, bed_of, forecaster, opened, spec_of, values, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.scoring.score import score
from tqs_passes.errors import TqsError

Outcome = Literal["refused", "done"]
Attack = Callable[[Path, random.Random], Outcome]

_EXITS = {0: "done", 2: "refused", 3: "refused", 4: "refused"}


class BadError(Exception):
    """An outcome that must not be."""


def command(*arguments: str) -> Outcome:
    """Run a command; it must end with a documented code, and say at most one error, in one printable line."""
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = main(list(arguments))
    lines = [line for line in err.getvalue().splitlines() if "error" in line or "Traceback" in line]
    if code not in _EXITS or len(lines) > 1 or not all(line.isprintable() for line in lines):
        raise BadError(f"exit {code}: {err.getvalue()[-400:]}")
    return "done" if code == 0 else "refused"


def _weird(rng: random.Random) -> onnx.ModelProto:
    """Return a model with something that protobuf allows and ONNX, or onnx-graphsurgeon, does not."""
    proto = onnx.ModelProto()
    proto.CopyFrom(forecaster(6, 8))
    graph = proto.graph
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["s"])], "body", [], [sequence])

    def sparse(name: str) -> onnx.SparseTensorProto:
        one = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
        return helper.make_sparse_tensor(
            one, helper.make_tensor(f"{name}_i", TensorProto.INT64, [1], [0]), [4]
        )

    def branch() -> None:
        graph.node.append(helper.make_node("If", ["c"], ["q"], then_branch=body, else_branch=body))
        graph.initializer.append(helper.make_tensor("c", TensorProto.BOOL, [], [True]))

    def untyped_branch() -> None:
        body.output[0].ClearField("type")
        branch()

    def constant() -> None:
        node = helper.make_node("Constant", [], ["k"])
        attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        attribute.t.data_type = rng.choice([0, 77, 1])
        attribute.t.dims.extend(rng.choice([[], [3], [2**40], [-1]]))
        graph.node.insert(0, node)

    def tensor() -> None:
        stored = rng.choice([*graph.initializer, graph.initializer.add(name="extra", dims=[2])])
        stored.data_type = rng.choice([0, 99, -1, 8, 16, 17, 22])

    def port() -> None:
        value = rng.choice([graph.input[0], graph.output[0]])
        rng.choice([lambda: value.ClearField("type"), lambda: value.CopyFrom(sequence)])()

    def element() -> None:
        rng.choice([graph.input[0], graph.output[0]]).type.tensor_type.elem_type = rng.choice([0, 99, 8, 14])

    def attributes() -> None:
        node = rng.choice(list(graph.node))
        attribute = node.attribute.add(name=rng.choice(["axis", "value", "body", "then_branch", "to", ""]))
        attribute.type = rng.choice([0, 1, 2, 3, 4, 5, 6, 11, 13])

    rng.choice([lambda: graph.sparse_initializer.add(), lambda: graph.sparse_initializer.extend([sparse("s")] * 2),
                lambda: graph.sparse_initializer.append(sparse("W1")), branch, untyped_branch, constant, tensor, tensor,
                port, element, attributes, lambda: graph.value_info.extend([sequence, onnx.ValueInfoProto(name="v")]),
                ])()  # fmt: skip
    return proto


def models(folder: Path, rng: random.Random) -> Outcome:
    """Score, inspect or quantize a mutated model; what a stage of the runtime would crash on is tried in a child."""
    case = write_case(folder, forecaster(6, 8), n=1, steps=2)
    if rng.random() < 0.5:
        case.model.write_bytes(_weird(rng).SerializeToString())
    else:
        data = rng.choice(sources())
        try:
            case.model.write_bytes(rng.choice(MUTATIONS)(rng, data))
        except (ValueError, IndexError):  # the mutation itself is no protobuf
            case.model.write_bytes(flipped(rng, data))
    if rng.random() < 0.8:
        return command("inspect", str(case.model), "--json")
    return command(
        "package", str(case.model), "--format", rng.choice(["triton", "olive"]), "--out", str(folder / "p")
    )


def exposed(folder: Path, rng: random.Random) -> Outcome:
    """Read, lift, expose and emit a model with something unusual in it, without the runtime."""
    from tqs_onnx.inputs.source import open_source, require_scorable
    from tqs_passes.transforms.expose import Expose

    (folder / "m.onnx").write_bytes(_weird(rng).SerializeToString())
    try:
        source = open_source(folder / "m.onnx")
        require_scorable(source)
        Expose(tuple(w.name for w in source.survey.weights)).apply(source.lifted)
    except TqsError as error:
        if not str(error).isprintable():
            raise BadError(str(error)) from error
        return "refused"
    return "done"


def bombs(folder: Path, rng: random.Random) -> Outcome:
    """Inspect a small model that would expand."""
    made = rng.choice([
        lambda: function_bomb(rng.randint(17, 120)),
        lambda: function_bomb(rng.randint(12, 30), times=rng.randint(3, 9)),
        lambda: function_loop(rng.randint(1, 30)), lambda: function_bomb(rng.randint(200, 900), times=1),
        lambda: concat_bomb(rng.randint(20, 40)), lambda: endless_loop(grows=rng.random() < 0.5),
    ])()  # fmt: skip
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return command("inspect", str(folder / "m.onnx"), "--json")


def _mangled(text: str, rng: random.Random) -> str:
    """Return a text document with something of it lost, doubled, nested or made huge."""
    at = rng.randrange(len(text))
    return rng.choice([
        text[:at], text[:at] + text[at + rng.randint(1, 9) :], text[:at] + "[" * rng.choice([1, 3000]) + text[at:],
        text[:at] + "9" * 5000 + text[at:], text[:at] + "\0" + text[at:], text + text, text[:at] + "\n" + text[at:],
        text[:at] + "\ufeff\u202e" + text[at:], text[:at] + '"' + text[at:], text[:at] + "é\ud800" + text[at:],
    ])  # fmt: skip


def texts(folder: Path, rng: random.Random) -> Outcome:
    """Read a damaged rollout spec, build file, plan, scores file, manifest or list of unfinished files."""
    case = write_case(folder / "in", forecaster(6, 8), n=1, steps=2)
    kind = rng.choice(["rollout", "build", "plan", "scores", "manifest", "unfinished"])
    if kind == "rollout":
        case.rollout.write_text(_mangled(REPLACE.format(steps=2), rng), errors="surrogatepass")
        return command(
            "quantize", str(case.model), *case.arguments("--out", str(folder / "r"), "--compression", "999")
        )
    if kind == "build":
        text = (
            'version = 1\nmodel = "m.onnx"\n[data]\nrollout = "rollout.toml"\ncontexts = "gone.npz"\n[plan]\n'
        )
        (folder / "in" / "tqs.toml").write_text(
            _mangled(text + "compression = 2\n", rng), errors="surrogatepass"
        )
        return command("build", str(folder / "in" / "tqs.toml"), "--out", str(folder / "r"))
    if kind == "unfinished":
        (folder / "r").mkdir()
        (folder / "r" / ".unfinished").write_text(
            _mangled('["plan.json", "../in/m.onnx"]', rng), errors="surrogatepass"
        )
        (folder / "r" / "plan.json").write_text("{}")
        found = command(
            "quantize", str(case.model), *case.arguments("--out", str(folder / "r"), "--compression", "999")
        )
        if not case.model.exists():
            raise BadError("a file outside the run directory is gone")
        return found
    document = folder / "f.json"
    document.write_text(
        _mangled(json.dumps({"version": 1, "weights": [], "assignments": []}), rng), errors="surrogatepass"
    )
    if kind == "plan":
        return command("emit", str(case.model), "--plan", str(document), "--out", str(folder / "o.onnx"))
    if kind == "scores":
        return command(
            "allocate",
            str(case.model),
            "--scores",
            str(document),
            "--compression",
            "2",
            "--out",
            str(folder / "o"),
        )
    return command("build", str(document), "--out", str(folder / "r"))


_MADE: dict[str, Any] = {}


def finished_run() -> Path:
    """Return a folder with a finished run, made once."""
    if "run" not in _MADE:
        import tempfile

        holder = tempfile.TemporaryDirectory(prefix="tqs-gauntlet-")
        folder = Path(holder.name)
        case = write_case(folder / "in", forecaster(16, 24), n=1, steps=2)
        options = [
            "--compression",
            "1.5",
            "--rounding",
            "gptq",
            "--response-bits",
            "none",
            "--providers",
            "cpu",
        ]
        out = str(folder / "run")
        if command("quantize", str(case.model), *case.arguments("--out", out), *options) != "done":
            raise BadError("the undamaged run fails")
        _MADE["run"], _MADE["holder"] = folder, holder
    path: Path = _MADE["run"]
    return path


def plans(folder: Path, rng: random.Random) -> Outcome:
    """Emit by a damaged plan, or damaged codes: refused, or the file is what the plan says."""
    made = finished_run()
    shutil.copytree(made / "run", folder / "run")
    plan, codes = folder / "run" / "plan.json", folder / "run" / "codes.npz"
    before = (folder / "run" / "m.tqs.onnx").read_bytes()
    if codes.exists() and rng.random() < 0.5:
        raw = bytearray(codes.read_bytes())
        kind = rng.random()
        if kind < 0.7:
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        codes.write_bytes(raw if kind < 0.85 else raw[: rng.randrange(len(raw))])
        out = folder / "o.onnx"
        found = command("emit", str(made / "in" / "m.onnx"), "--plan", str(plan), "--out", str(out))
        if found == "done" and out.read_bytes() != before:
            raise BadError("damaged codes were emitted")
        return found
    plan.write_text(mutated_plan(rng, plan.read_text()), encoding="utf-8", errors="replace")
    return command("emit", str(made / "in" / "m.onnx"), "--plan", str(plan), "--out", str(folder / "o.onnx"))


def damaged_stores(folder: Path, rng: random.Random) -> Outcome:
    """Score on a damaged store: the same scores, or one line."""
    if "store" not in _MADE:
        source = opened(finished_run() / "stored", forecaster(6, 8))
        bed = bed_of(source, spec_of(2), Contexts({"x": values(1, 6)}, {}))

        def again(path: Path) -> str:
            return score(bed, source.sha256, store=path).to_json()

        _MADE["store"] = again, again(finished_run() / "s.sqlite")
    again, text = _MADE["store"]
    store = folder / "s.sqlite"
    shutil.copy(finished_run() / "s.sqlite", store)
    if rng.random() < 0.3:
        stores.edited(store, rng.choice(stores.EDITS))
    else:
        rng.choice([stores.flipped, stores.flipped, stores.truncated, stores.blanked])(store, rng)
    try:
        found = again(store)
    except TqsError:
        return "refused"
    if found != text:
        raise BadError("other scores")
    return "done"


def data(folder: Path, rng: random.Random) -> Outcome:
    """Score on damaged contexts; a budget that cannot be met ends the job before any rollout."""
    case = write_case(folder, forecaster(6, 8), n=2, steps=2)
    raw = bytearray(case.contexts.read_bytes())
    kind = rng.random()
    if kind < 0.4:
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif kind < 0.6:
        raw = raw[: rng.randrange(len(raw))]
    elif kind < 0.8:
        at = rng.randrange(len(raw))
        raw = raw[:at] + raw[at : at + rng.randint(1, 200)] * 2 + raw[at:]
    else:
        stream = io.BytesIO()
        np.savez(stream, x=rng.choice([np.float64(1), np.zeros((0, 6)), np.array(["a"]), np.full((2, 6), np.nan),
                                       np.zeros((2, 6, 1, 1, 1)), np.zeros((2, 6), np.complex64)]))  # fmt: skip
        raw = bytearray(stream.getvalue())
    case.contexts.write_bytes(raw)
    return command(
        "quantize", str(case.model), *case.arguments("--out", str(folder / "r"), "--compression", "999")
    )


#: Kinds of attacks, and the share of each in all; `tests.gauntlet.inputs` has the others.
KINDS: dict[str, tuple[Attack, float]] = {
    "models": (models, 0.2),
    "graphs": (exposed, 0.14),
    "bombs": (bombs, 0.04),
    "texts": (texts, 0.1),
    "plans and codes": (plans, 0.08),
    "stores": (damaged_stores, 0.07),
    "data": (data, 0.07),
}

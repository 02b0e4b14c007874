"""What `tqs inspect` finds in each way to export the three architectures: one row a variant.

    network               exporters and opsets
    timesfm (2 layers)    tqs export; dynamo 18, 21; TorchScript 14, 17
    aurora (width 64)     tqs export; dynamo 18; TorchScript 17
    pangu_mini            dynamo 18, 20, 21; TorchScript 11, 14, 16, 17 (both ways to store a bias table, with masks)
    Pangu-shaped          as the released file: TorchScript's names, expanded and gathered tables, opset 11 and 17

Usage, with the [export] extra, timesfm and microsoft-aurora: ``python tools/inspect_variants.py --out FILE``. Weights
are random and no two tensors alike. A parameter is found where one weight holds its values, as they are, reshaped or
transposed; its channel axis is right when it is the axis of the layer's outputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tqs_models.pangu.shaped import TINY, build
from tqs_passes.files.model import Model, load_model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.survey.naming import is_anonymous
from tqs_passes.survey.survey import find_weights
from tqs_passes.weights import Role, Survey, Weight

ZOO = Path(__file__).resolve().parents[1] / "models" / "zoo"


@dataclass(frozen=True, slots=True)
class Row:
    """The results for one export.

    Parameters
    ----------
    network, exporter : str
    parameters : int
        Number of parameters of the network, without scalars.
    found : int
        Number of parameters stored in exactly one weight.
    named : int
        Number of found parameters whose label ends in the parameter's name; any generated label if it has no name.
    folded : tuple of str
        Parameters that no weight stores: they are merged with others, or only a function of them is stored.
    wrong_axis : tuple of str
        Matrices whose channel axis differs from that of their outputs.
    other : tuple of str
        Weights that store no parameter, by label.
    masks : int
        Number of tensors recognised as masks.
    weights : int
    roles : tuple of int
        Number of weights by role, in the order of `Role`.
    """

    network: str
    exporter: str
    parameters: int
    found: int
    named: int
    folded: tuple[str, ...]
    wrong_axis: tuple[str, ...]
    other: tuple[str, ...]
    masks: int
    weights: int
    roles: tuple[int, ...]


def look(
    network: str, exporter: str, model: Model, parameters: Mapping[str, np.ndarray], *, turned: bool
) -> Row:
    """Survey an export and compare it with the parameters of its network.

    Parameters
    ----------
    network, exporter : str
    model : Model
    parameters : mapping of str to array
        The parameters with more than one value.
    turned : bool
        Whether the network stores matrices as [out, in], as torch's Linear does; otherwise [in, out].
    """
    lifted, survey = find_weights(model)
    stored = {t.name: t for t in lifted.proto.graph.initializer}
    holders: dict[bytes, list[Weight]] = {}
    for weight in survey.weights:
        for key in _keys(np.asarray(tensor_array(stored[weight.name], lifted.folder))):
            holders.setdefault(key, []).append(weight)
    found: dict[str, Weight] = {}
    for name, values in parameters.items():
        hits = {w.name: w for w in holders.get(_key(values), [])}
        if len(hits) == 1:
            found[name] = next(iter(hits.values()))
    wrong = [n for n, w in found.items() if not _right_axis(parameters[n], w, stored[w.name], lifted, turned)]
    return _row(network, exporter, survey, parameters, found, wrong)


def _row(
    network: str, exporter: str, survey: Survey, parameters: Mapping[str, np.ndarray], found: dict[str, Weight],
    wrong: list[str],
) -> Row:  # fmt: skip
    held = {w.name for w in found.values()}
    return Row(
        network,
        exporter,
        len(parameters),
        len(found),
        sum(
            not is_anonymous(w.label) and (is_anonymous(n) or _same_name(w.label, n))
            for n, w in found.items()
        ),
        tuple(n for n in parameters if n not in found),
        tuple(wrong),
        tuple(w.label for w in survey.weights if w.name not in held),
        sum("mask" in e.reason for e in survey.excluded),
        len(survey.weights),
        tuple(sum(w.role is role for w in survey.weights) for role in Role),
    )


def _same_name(label: str, name: str) -> bool:
    """Whether a label ends like the parameter's name: exporters add module names in front, or omit some."""
    return label == name or label.endswith(f".{name}") or name.endswith(f".{label}")


def _key(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, np.float32).tobytes()


def _keys(values: np.ndarray) -> set[bytes]:
    """Return keys of a tensor's content, unchanged and transposed, because exporters transpose matrices."""
    keys = {_key(values)}
    if values.ndim == 2:
        keys.add(_key(values.T))
    return keys


def _right_axis(values: np.ndarray, weight: Weight, tensor: Any, model: Model, turned: bool) -> bool:  # noqa: ANN401
    readers = {r.op_type for r in weight.readers}
    if not readers & {"MatMul", "Gemm"} or sum(n > 1 for n in values.shape) != 2 or values.ndim != 2:
        return True
    if any(r.input_index == 0 for r in weight.readers):
        return True  # a constant operand: tokens, encodings
    same = np.array_equal(np.asarray(tensor_array(tensor, model.folder)), values)
    return weight.channel_axis == (0 if turned == same else 1)


def _parameters(module: Any, cut: str = "") -> dict[str, np.ndarray]:  # noqa: ANN401
    return {n.removeprefix(cut): p.detach().numpy() for n, p in module.named_parameters() if p.numel() > 1}


def _export(module: Any, example: tuple[Any, ...], path: Path, *, dynamo: bool, opset: int) -> Model:  # noqa: ANN401
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module(*example)
        extra = {"external_data": False, "verbose": False} if dynamo else {}
        torch.onnx.export(module, example, str(path), opset_version=opset, dynamo=dynamo, **extra)
    return load_model(path)


def _torch_rows(
    network: str,
    module: Any,  # noqa: ANN401  (torch is optional: its types are unknown here)
    example: tuple[Any, ...],
    ways: list[tuple[bool, int]],
    *,
    cut: str,
    turned: bool,
) -> Iterator[Row]:
    parameters = _parameters(module, cut)
    for dynamo, opset in ways:
        with tempfile.TemporaryDirectory() as folder:
            model = _export(module, example, Path(folder) / "m.onnx", dynamo=dynamo, opset=opset)
            yield look(
                network, f"{'dynamo' if dynamo else 'TorchScript'} {opset}", model, parameters, turned=turned
            )


def pangu_mini() -> tuple[Any, tuple[Any, ...]]:
    """Return the network of the zoo with random weights, and an example of its inputs."""
    import torch

    sys.path[:0] = [str(ZOO / "pangu_mini"), str(ZOO)]
    from network import PanguMini

    torch.manual_seed(0)
    mean, deviation, change = torch.randn(3), 1 + torch.rand(3), 1 + torch.rand(3)
    module = PanguMini(mean, deviation, change, torch.randn(6, 7, 12)).eval()
    return module, (torch.randn(2, 3, 7, 12), torch.randn(2, 8))


def timesfm_small() -> tuple[Any, tuple[Any, ...]]:
    """Return the package's network with two layers as one graph, and an example of its inputs."""
    import torch

    from tqs_models.timesfm.network import Forecast, random_network

    context = torch.randn(2, 512).cumsum(1)
    return Forecast(random_network(0, 2)), (context, torch.zeros(2, 512, dtype=torch.bool))


def aurora_small() -> tuple[Any, tuple[Any, ...]]:
    """Return the package's network of width 64 as one step, and an example of its inputs."""
    import torch

    from tqs_models.aurora.network import Step, random_network

    rows, columns, levels = 16, 32, (100, 250, 500, 850)
    network = random_network(0, embed_dim=64, encoder_depths=(2, 2, 2), decoder_depths=(2, 2, 2))
    step = Step(network, torch.linspace(90, -80, rows), torch.linspace(0, 349, columns), levels).eval()
    shapes = ((1, 2, 4, rows, columns), (1, 2, 5, len(levels), rows, columns), (3, rows, columns), (1, 64))
    return step, tuple(torch.randn(*shape) for shape in shapes)


def own_export(name: str, module: Any, settings: dict[str, str]) -> Row:  # noqa: ANN401
    """Return the results for `tqs export` of an architecture."""
    from tqs_models import aurora, timesfm

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "timesfm":
            timesfm.export(Path(folder), settings=settings)
        else:
            aurora.export(Path(folder), grid=(16, 32), levels=(100, 250, 500, 850), settings=settings)
        model = load_model(Path(folder) / "model.onnx")
        return look(name, "tqs export", model, _parameters(module.network), turned=True)


def shaped_rows() -> Iterator[Row]:
    """Yield the results for Pangu-shaped models, whose own stored tensors are the parameters."""
    for bias, opset in (("expanded", 17), ("table", 17), ("expanded", 11), ("table", 11)):
        norms = "fused" if opset == 17 else "decomposed"
        proto = build(dataclasses.replace(TINY, bias=bias, norms=norms), 0, opset=opset)
        model = Model(proto, Path())
        parameters = {
            t.name: np.asarray(tensor_array(t, Path())) for t in proto.graph.initializer if t.data_type == 1
        }
        parameters = {n: a for n, a in parameters.items() if a.size > 1}
        yield look("Pangu-shaped", f"{bias} bias, opset {opset}", model, parameters, turned=False)


def rows(which: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of the named networks."""
    if "shaped" in which:
        yield from shaped_rows()
    if "pangu_mini" in which:
        ways = [(True, 18), (True, 20), (True, 21), (False, 11), (False, 14), (False, 16), (False, 17)]
        yield from _torch_rows("pangu_mini", *pangu_mini(), ways, cut="", turned=False)
    if "timesfm" in which:
        module, example = timesfm_small()
        yield own_export("timesfm", module, {"layers": "2"})
        ways = [(True, 18), (True, 21), (False, 14), (False, 17)]
        yield from _torch_rows("timesfm", module, example, ways, cut="network.", turned=True)
    if "aurora" in which:
        module, example = aurora_small()
        sizes = {"embed_dim": "64", "encoder_depths": "2,2,2", "decoder_depths": "2,2,2"}
        yield own_export("aurora", module, sizes)
        yield from _torch_rows(
            "aurora", module, example, [(True, 18), (False, 17)], cut="network.", turned=True
        )


def _some(names: tuple[str, ...], most: int = 6) -> str:
    """Return the first names, and the number of further names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{n}`" for n in names[:most]) + more


def markdown(found: list[Row]) -> str:
    """Return the table, followed by the folded parameters and the other weights."""
    head = [
        "network",
        "exporter",
        "parameters",
        "found once",
        "named",
        "folded",
        "wrong axis",
        "other weights",
    ]
    head += ["masks told apart", "weights", *(r.value for r in Role)]
    lines = [" | ".join(head), " | ".join(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for r in found:
        counts = (
            r.parameters,
            r.found,
            r.named,
            len(r.folded),
            len(r.wrong_axis),
            len(r.other),
            r.masks,
            r.weights,
        )
        lines.append(" | ".join([r.network, r.exporter, *map(str, (*counts, *r.roles))]))
    parts = [f"# What `tqs inspect` finds in each export\n\n{(__doc__ or '').partition('Usage')[0]}"]
    parts.append("Made by `python tools/inspect_variants.py`. Counts of tensors; scalars are left out.\n")
    parts.append("\n".join(f"| {line} |" for line in lines) + "\n")
    for r in found:
        notes = [("folded", r.folded), ("wrong axis", r.wrong_axis), ("other", r.other)]
        shown = [f"{kind}: {_some(names)}" for kind, names in notes if names]
        if shown:
            parts.append(f"- {r.network}, {r.exporter}: {'; '.join(shown)}")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description="Write what tqs inspect finds in each export.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default="shaped,pangu_mini,timesfm,aurora")
    a = parser.parse_args()
    a.out.write_text(markdown(list(rows(tuple(a.networks.split(","))))), encoding="utf-8")


if __name__ == "__main__":
    main()

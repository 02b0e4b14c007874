"""Give renamed weights a readable label, recovered from names that the exporter left in the nodes reading them.

`torch.onnx` keeps parameter names except where it folds a transpose into the weight: then a Linear weight is
called `onnx::MatMul_507` (TorchScript) or `val_12` (dynamo). Its reader still holds the module's name:

* dynamo: node metadata `pkg.torch.onnx.name_scopes` = `['', 'model', 'model.0.attn', 'linear']`; the last but
  one is the module;
* TorchScript: node name `/model/stacked_xf.0/attn/qkv_proj/MatMul`; the part before the last `/` is the module.

Labels are for people; the key of a weight is always its name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import onnx

from tqs_passes.errors import one_line
from tqs_passes.graph.trace import Reading

_SCOPES = "pkg.torch.onnx.name_scopes"
_LONGEST_SCOPES = 4000
#: Names that exporters generate.
_ANONYMOUS = re.compile(
    r"""^(\d+                                  # old TorchScript: 507
        |onnx::\w+_\d+                         # TorchScript: onnx::MatMul_507
        |.*Constant(_\d+)?(_output_\d+)?       # TorchScript: /block/Constant_3_output_0
        |const_fold_opt__\d+                   # TensorFlow
        |val_\d+ | lifted_tensor_\d+           # dynamo
        |)$""",
    re.VERBOSE,
)
#: Names that dynamo gives to folded values, after their operator. Real names look alike, so scopes must exist too.
_MAYBE_ANONYMOUS = re.compile(r"^_?[a-z]+(_[a-z]+)*_\d+$")
_BIAS_INPUT = {
    "Gemm": 2,
    "Conv": 2,
    "ConvTranspose": 2,
    "LayerNormalization": 2,
    "GroupNormalization": 2,
    "BatchNormalization": 2,
}


def is_anonymous(name: str) -> bool:
    """Return whether an exporter generated the name.

    >>> is_anonymous("val_12"), is_anonymous("body.norm.weight")
    (True, False)
    """
    return _ANONYMOUS.match(name) is not None


def labels(named: Iterable[tuple[str, int, Sequence[Reading]]]) -> dict[str, str]:
    """Return a label for each weight: unique, on one printable line, deterministic.

    Parameters
    ----------
    named : iterable of (str, int, sequence of Reading)
        Name, number of axes and readers of each weight, in graph order.
    """
    rows = list(named)
    wanted = [(name, label_of(name, rank, readings)) for name, rank, readings in rows]
    taken = {one_line(name) for name, label in wanted if name == label}
    result: dict[str, str] = {}
    kept: set[str] = set()
    for name, label in wanted:
        shown = one_line(label)
        if name != label or shown in kept:
            shown = _unique(shown, taken)
        kept.add(shown)
        taken.add(shown)
        result[name] = shown
    return result


def _unique(label: str, taken: set[str]) -> str:
    found, n = label, 1
    while found in taken:
        n += 1
        found = f"{label}#{n}"
    return found


def label_of(name: str, rank: int, readings: Sequence[Reading]) -> str:
    """Return the label of one weight, not yet unique: its own name, or one recovered from its readers."""
    sure = is_anonymous(name)
    if not sure and not _MAYBE_ANONYMOUS.match(name):
        return name
    for reading in readings:
        module = _module_of_scopes(reading.site.node)
        if module is not None:
            return f"{module}.{_role(reading, rank)}"
    if not sure:
        return name
    for reading in readings:
        module = _module_of_path(reading.site.node.name)
        if module is not None:
            return f"{module}.{_role(reading, rank)}"
    return next((f"{r.site.label}.{_role(r, rank)}" for r in readings if r.site.node.name), name)


def _role(reading: Reading, rank: int) -> str:
    op, position = reading.site.op, reading.reader.input_index
    added = op == "Add" and rank == 1
    if op in _BIAS_INPUT and position == 0:
        return "input"
    return "bias" if added or _BIAS_INPUT.get(op) == position else "weight"


def _module_of_scopes(node: onnx.NodeProto) -> str | None:
    text = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    if not text or len(text) > _LONGEST_SCOPES:
        return None
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if not isinstance(scopes, list) or len(scopes) < 2 or not isinstance(scopes[-2], str):
        return None
    return scopes[-2] or None


def _module_of_path(name: str) -> str | None:
    """Return `model.net.0` of `/model/net/net.0/MatMul`: a Sequential repeats its name in its children."""
    if not name.startswith("/"):
        return None
    parts = [part for part in name.split("/") if part]
    kept = [part for part, following in pairwise(parts) if not following.startswith(part + ".")]
    return ".".join(kept) or None

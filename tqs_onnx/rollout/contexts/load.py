"""Load contexts from a file, and refuse contexts that scoring and evaluation share.

`.npz`, a folder of `.npy` files, `.nc` or `.zarr`: one array per model input. `.csv` or `.txt`, also `.gz`: windows of
a table. `.nc` or `.zarr` with `[fields]` in the spec: states of fields over time.
Never imports onnxruntime.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.arrays import read_arrays
from tqs_onnx.rollout.contexts.context_set import Contexts, kept_within
from tqs_onnx.rollout.contexts.dataset import is_dataset
from tqs_onnx.rollout.contexts.fields import cut_fields
from tqs_onnx.rollout.contexts.windows import cut_windows
from tqs_onnx.rollout.spec.signature import ModelSignature
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

__all__ = ["Contexts", "check_disjoint", "load_contexts"]

_TABLES = (".csv", ".csv.gz", ".txt", ".txt.gz")


def load_contexts(
    path: Path,
    spec: RolloutSpec,
    signature: ModelSignature,
    *,
    split: Literal["train", "validation", "test"] | None = None,
    limit: int | None = None,
    most_bytes: int | None = None,
) -> Contexts:
    """Load the contexts of a model.

    Arrays that are bigger than `most_bytes` together lie in temporary files, which are mapped. Those of an `.npz` or a
    folder go there without passing through memory as a whole, unless their first axis is stored as the fastest.

    Parameters
    ----------
    path : Path
        `.npz`, a folder of `.npy` files, NetCDF (`.nc`), Zarr (`.zarr`), or a table (`.csv`, `.txt`, each also `.gz`).
    spec : RolloutSpec
        A spec that was checked against the model; a table needs its `[windows]`.
    signature : ModelSignature
        Signature of the user's model.
    split : str, optional
        The rows of a table to use; arrays are a split of their own and ignore it.
    limit : int, optional
        Largest number of contexts, thinned evenly (over the series as well).
    most_bytes : int, optional
        Bytes that their arrays may take in memory.

    Raises
    ------
    InputError
        The file cannot be read; an array is missing, unknown, or of the wrong shape or type; a value is not
        finite; a split is unknown or too short; or there are no contexts.
    """
    if not path.exists():
        raise InputError("no such file", where=str(path), todo="Give an .npz, a folder of .npy, or a .csv")
    if is_dataset(path) and spec.fields is not None:
        return kept_within(cut_fields(path, spec, signature, split=split, limit=limit), most_bytes)
    if is_dataset(path) or path.is_dir() or path.suffix == ".npz":
        found = read_arrays(path, spec, signature, limit=limit, most_bytes=most_bytes)
        return kept_within(found, most_bytes)
    if is_table(path):
        return kept_within(cut_windows(path, spec, signature, split=split, limit=limit), most_bytes)
    raise InputError(
        "is not a contexts file",
        where=str(path),
        todo="Give an .npz, a folder of .npy, .nc, .zarr, or a .csv or .txt (also .gz)",
    )


def is_table(path: Path) -> bool:
    """Return whether a path is a table of text, judging by its name."""
    return path.name.lower().endswith(_TABLES)


def check_disjoint(scoring: Contexts, evaluation: Contexts, role: str = "scoring") -> None:
    """Refuse an overlap between the contexts that a plan is made from and those that judge it.

    Contexts of one table overlap when they share a row (context or truth, of any series); others when one
    context has the same content in both sets. `role` is the purpose of the first set.

    Raises
    ------
    InputError
        The sets overlap; the message names the first pair.
    """
    todo = f"Evaluate on rows that {role} does not use: give `eval_contexts`, or change the [windows] splits"
    if scoring.table is not None and scoring.table == evaluation.table:
        pair = _shared_rows(scoring.rows, evaluation.rows)
        if pair is not None:
            one, other = pair
            raise InputError(
                f"{role} rows {one[0]}–{one[1] - 1} and evaluation rows {other[0]}–{other[1] - 1} overlap",
                where=evaluation.source,
                todo=todo,
            )
        return
    known = {digest: index for index, digest in enumerate(_digests(scoring, evaluation))}
    for index, digest in enumerate(_digests(evaluation, scoring)):
        if digest in known:
            raise InputError(
                f"context {index} is also {role} context {known[digest]} of {scoring.source}",
                where=evaluation.source,
                todo=todo,
            )


def overlap(one: Contexts, other: Contexts) -> bool:
    """Return whether two sets share a row of a table, or the content of a context (see `check_disjoint`)."""
    try:
        check_disjoint(one, other)
    except InputError:
        return True
    return False


def _shared_rows(
    one: NDArray[np.int64] | None, other: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if one is None or other is None:
        return None
    for a in np.unique(one, axis=0):
        hits = other[(other[:, 0] < a[1]) & (a[0] < other[:, 1])]
        if len(hits):
            return a, hits[0]
    return None


def _digests(contexts: Contexts, other: Contexts) -> list[bytes]:
    """Return one digest per context over the inputs that both sets contain."""
    names = sorted(contexts.arrays.keys() & other.arrays.keys())
    if not names:
        return []
    result: list[bytes] = []
    for index in range(contexts.n_contexts):
        digest = hashlib.sha256()
        for name in names:
            array = np.ascontiguousarray(contexts.arrays[name][index])
            digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
        result.append(digest.digest())
    return result

"""The user's model, opened once: its file, its lifted graph, its weights, its signature."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from tqs_onnx.rollout.spec.signature import ModelSignature, signature_of
from tqs_passes.errors import InputError
from tqs_passes.files.model import FileFacts, Model, file_facts, load_model, serialize
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.random_ops import random_operators
from tqs_passes.graph_pass import Skip
from tqs_passes.survey.lift import Lift
from tqs_passes.survey.survey import surveyed
from tqs_passes.weights import Role, Survey


@dataclass(frozen=True, slots=True)
class Source:
    """An opened model.

    Parameters
    ----------
    path : Path
    facts : FileFacts
        Bytes and digests.
    lifted : Model
        The model with every weight as an initializer of the main graph, and equal weights merged into one.
    survey : Survey
    signature : ModelSignature
    metadata : dict of str to str
        The metadata stored in the file.
    skipped : tuple of Skip
        Stored float tensors that stay in place and are not surveyed, with the reasons.
    roles : tuple of str
        Roles given by hand, ``PATTERN=ROLE``.
    holder : object
        Keeps the temporary file of a model given as a value alive.
    """

    path: Path
    facts: FileFacts
    lifted: Model
    survey: Survey
    signature: ModelSignature
    metadata: dict[str, str]
    skipped: tuple[Skip, ...] = ()
    roles: tuple[str, ...] = ()
    holder: object = field(default=None, repr=False, compare=False)

    @property
    def file(self) -> Path | None:
        """The file that the user gave; None for a model given as a value."""
        return None if self.holder is not None else self.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The `.onnx` file and its external-data files, if any."""
        return tuple(self.path.parent / name for name in self.facts.sha256)

    @property
    def sha256(self) -> str:
        """Digest of the `.onnx` file and of its external-data files, if any."""
        digests = self.facts.sha256
        if len(digests) == 1:
            return digests[self.path.resolve().name]
        text = "\n".join(f"{digests[name]}  {name}" for name in sorted(digests))
        return hashlib.sha256(text.encode()).hexdigest()


class _TemporaryFolder:
    """A temporary folder, removed when this object is no longer referenced."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tqs-model-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


#: The forms in which a model may be given.
Given = str | Path | onnx.ModelProto


def open_source(model: Given) -> Source:
    """Open a model.

    Parameters
    ----------
    model : path or ModelProto
        A `ModelProto` is written into a temporary folder, which lives as long as the source: verification needs a file
        to measure and to compare with.

    Raises
    ------
    InputError
        The file cannot be read, or is not ONNX (see `load_model`).
    """
    holder: _TemporaryFolder | None = None
    if isinstance(model, onnx.ModelProto):
        holder = _TemporaryFolder()
        path = holder.path / "model.onnx"
        path.write_bytes(serialize(model))
    else:
        path = Path(model)
    loaded = load_model(path)
    lifted = Lift().apply(loaded)
    model_of_weights, survey = surveyed(lifted.model, lifted.origins)
    return Source(
        path,
        file_facts(path, loaded),
        model_of_weights,
        survey,
        signature_of(loaded.proto),
        {entry.key: entry.value for entry in loaded.proto.metadata_props},
        lifted.skipped,
        holder=holder,
    )


def require_scorable(source: Source) -> None:
    """Refuse a model that cannot be scored.

    Raises
    ------
    InputError
        The model has no weights, weights that are not finite, or operators that draw random numbers.
    """
    if not source.survey.weights:
        raise InputError(
            "the model has no weights", where=str(source.path), todo="tqs inspect lists what it stores"
        )
    drawing = random_operators(source.lifted.proto)
    if drawing:
        raise InputError(
            f"operator {drawing[0]} draws random numbers: two rollouts would differ by chance",
            where=str(source.path),
            todo="Export the model in inference mode",
        )
    stored = {t.name: t for t in source.lifted.proto.graph.initializer}
    for weight in source.survey.weights:
        values = tensor_array(stored[weight.name], source.lifted.folder)
        finite = np.isfinite(values.astype(np.float32) if values.dtype.kind == "V" else values)
        if not finite.all():
            raise InputError(
                f"weight {weight.label!r} holds {int((~finite).sum())} NaN or infinite values",
                where=str(source.path),
                todo="Repair the weight and export the model again",
            )


def parse_role(text: str) -> tuple[str, Role]:
    """Return the pattern and the role in ``PATTERN=ROLE``.

    Raises
    ------
    InputError
        The text is not of the form PATTERN=ROLE.

    Examples
    --------
    >>> parse_role("encoder.*=io.input")
    ('encoder.*', <Role.IO_INPUT: 'io.input'>)
    """
    pattern, _, role = text.rpartition("=")
    if not pattern or role not in {r.value for r in Role}:
        raise InputError(
            f"{text!r} is not a role",
            where="`role`",
            todo=f"Write PATTERN=ROLE, e.g. 'encoder.*=io.input'; roles are {', '.join(Role)}",
        )
    return pattern, Role(role)

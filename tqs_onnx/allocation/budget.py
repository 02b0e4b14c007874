"""The byte budget of a file: a number of bytes given in one of three ways, or the least that meet a condition."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.allocation.file_size import FileSize
from tqs_passes.encode.weight import np_dtype
from tqs_passes.errors import InputError
from tqs_passes.plan.candidates import Menu

_ONE = "give one of `compression`, `weight_compression`, `max_bytes` and `target`"


@dataclass(frozen=True, slots=True)
class Budget:
    """The byte budget of a file; at most one of the four is given.

    Parameters
    ----------
    compression : float or None
        Bytes of the input file over bytes of the output file.
    weight_compression : float or None
        Bytes of the weights in the input file over their bytes in the output file: values, scales, tables, names and
        nodes.
    max_bytes : int or None
        Largest size of the output file in bytes.
    target : str or None
        Condition in the form of a gate, e.g. ``drift<=0.02``: the smallest file that meets it on the evaluation
        contexts.

    Raises
    ------
    InputError
        More than one is given, or one is not positive.
    """

    compression: float | None = None
    weight_compression: float | None = None
    max_bytes: int | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        """Refuse more than one budget, and a budget that is not positive."""
        given = self._given()
        if len(given) > 1:
            raise InputError(_ONE)
        for name, value in given.items():
            if not isinstance(value, str) and not value > 0:
                raise InputError(f"`{name}` must be positive, not {value}")

    def _given(self) -> dict[str, float | str]:
        named: dict[str, float | str | None] = {
            "compression": self.compression,
            "weight_compression": self.weight_compression,
            "max_bytes": self.max_bytes,
            "target": self.target,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def is_given(self) -> bool:
        """Whether any of the three is given."""
        return bool(self._given())

    def require(self) -> None:
        """Refuse an empty budget.

        Raises
        ------
        InputError
            None of the four is given.
        """
        if not self._given():
            raise InputError(_ONE)

    def n_bytes(self, menus: Sequence[Menu], size: FileSize) -> int:
        """Return the bytes that the whole output file may have; those of the input file for a target.

        Parameters
        ----------
        menus : sequence of Menu
            Menus of all weights of the model.
        size : FileSize
            Content of the output file besides its weights.

        Raises
        ------
        InputError
            None of the four is given.
        """
        self.require()
        if self.target is not None:
            return size.source_bytes
        if self.max_bytes is not None:
            return self.max_bytes
        if self.weight_compression is not None:
            return size.of(_ratio(source_weight_bytes(menus), self.weight_compression))
        assert self.compression is not None
        return _ratio(size.source_bytes, self.compression)


def _ratio(n_bytes: int, compression: float) -> int:
    ratio = n_bytes / compression
    return int(ratio) if math.isfinite(ratio) else sys.maxsize // 2


def source_weight_bytes(menus: Sequence[Menu]) -> int:
    """Return the bytes of the weights' values in the source."""
    weights = [m.weight for m in menus]
    return sum(w.n_values * np_dtype(w.dtype).itemsize * w.n_stored for w in weights)

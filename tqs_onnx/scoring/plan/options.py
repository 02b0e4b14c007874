"""The options of a sweep, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from tqs_onnx.scoring.plan.probe import Probe
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_passes.encode.static import Kind
from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """The condition under which a rollout ends before its last step (paper, A.11).

    Parameters
    ----------
    tolerance : float
        Largest change of the running γ_task …
    window : int
        … over this number of steps.
    """

    tolerance: float
    window: int = 3


@dataclass(frozen=True, slots=True)
class Blocks:
    """How weights are grouped into blocks; see `tqs_onnx.scoring.plan.blocks`.

    Parameters
    ----------
    rule : str
        ``pattern:REGEX``, ``nodes:N``, ``nodes:A-B,C-D``, ``stored:N``, ``prefix:DEPTH`` or ``auto``.
    score : {"joint", "mean"}
        Perturb all members together, or take the mean of the members' own scores.
    """

    rule: str
    score: Literal["joint", "mean"] = "joint"


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Options of a sweep.

    Parameters
    ----------
    probe : Probe
    response_bits : tuple of int
        Additional widths at which the response is measured: coarse rounding moves a rollout out of its linear range,
        and the allocator must know the cost there.
    horizons : tuple of int
        Steps at which γ(T) is computed; empty: the default schedule.
    units : {"std", "raw"}
    blocks : Blocks or None
        None: every weight is scored by itself.
    early_stop : EarlyStop or None
    group_test : bool
        Settle families of weights that look dead with one rollout (see `tqs_onnx.scoring.plan.group_test`).
    dead_below : float or None
        A weight with γ_task at or below this value is dead (A.4; the paper's TimesFM: −50).
    dead_at_minimum : bool
        Weights below the noise floor that share the lowest γ_task are dead (A.4; the paper's Aurora).
    engine : {"local", "ray"}
        Roll out on this machine or on a Ray cluster; results depend neither on this nor on the next two options.
    address : str or None
        Address of the cluster's head, ``host:port``; None: this machine's cluster, or a new one started here.
    workers : int or None
        Number of processes, or largest number of actors on a cluster; None: one process, or as many actors as fit.
    strategy : Strategy or None
        How weights are injected; None: the choice of the cost model.
    activations : bool
        Also score the inputs of matrices, rounded to 8 bits (see `tqs_onnx.scoring.activations`).
    ranges : {"uint8", "int8"} or None
        Integers of activations whose ranges are fixed in advance; None: every call has its own ranges.

    Raises
    ------
    InputError
        A width is invalid, the horizons do not increase, or an address is given without a cluster.
    """

    probe: Probe = field(default_factory=Probe)
    response_bits: tuple[int, ...] = (4, 2)
    horizons: tuple[int, ...] = ()
    units: Literal["std", "raw"] = "std"
    blocks: Blocks | None = None
    early_stop: EarlyStop | None = None
    group_test: bool = False
    dead_below: float | None = None
    dead_at_minimum: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None
    strategy: Strategy | None = None
    activations: bool = False
    ranges: Kind | None = None

    def __post_init__(self) -> None:
        """Validate the fields (see Raises)."""
        if any(not 1 <= bits <= 8 for bits in self.response_bits):
            raise InputError(
                f"`response_bits` must lie between 1 and 8, not {self.response_bits}", todo="Give e.g. 4,2"
            )
        if any(b <= a for a, b in pairwise((0, *self.horizons))):
            raise InputError(
                f"`horizons` must increase from 1 or more, not {self.horizons}", todo="Give e.g. 1,5,10"
            )
        if self.address is not None and self.engine != "ray":
            raise InputError("`address` names a Ray cluster", todo="Give `engine` ray with it")


def require_horizons(horizons: tuple[int, ...], steps: int) -> None:
    """Refuse a horizon beyond the rollout.

    Raises
    ------
    InputError
        The last horizon exceeds the number of steps.
    """
    if horizons and horizons[-1] > steps:
        raise InputError(
            f"horizon {horizons[-1]} lies beyond the {steps} steps of the rollout",
            todo="Roll out more steps, or give shorter horizons",
        )


def default_horizons(steps: int) -> tuple[int, ...]:
    """Return the horizon schedule: the values 1, 5, 10, 20, 40, 60, 120, 240, … below `steps`, and `steps`.

    >>> default_horizons(40)
    (1, 5, 10, 20, 40)
    >>> default_horizons(4)
    (1, 2, 4)
    """
    schedule = (1, 2) if steps < 5 else (1, 5, 10, 20, 40, 60, 120, 240, 480, 960)
    return (*(t for t in schedule if t < steps), steps)

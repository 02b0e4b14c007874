"""How a sweep is run: the choices, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from tqs_onnx.scoring.plan.probe import Probe
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When a rollout may end before its last step (paper, A.11).

    Parameters
    ----------
    tolerance : float
        The running γ_task moved by no more than that …
    window : int
        … over so many steps.
    """

    tolerance: float
    window: int = 3


@dataclass(frozen=True, slots=True)
class Blocks:
    """How weights are put together into blocks; see `tqs_onnx.scoring.plan.blocks`.

    Parameters
    ----------
    rule : str
        ``pattern:REGEX``, ``nodes:N``, ``nodes:A-B,C-D``, ``stored:N``, ``prefix:DEPTH`` or ``auto``.
    score : {"joint", "mean"}
        One perturbation of all members at once, or the mean of the members' own scores.
    """

    rule: str
    score: Literal["joint", "mean"] = "joint"


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How a sweep is run.

    Parameters
    ----------
    probe : Probe
    response_bits : tuple of int
        Further widths at which the response is measured: coarse rounding moves a rollout out of its linear range,
        and the allocator must know what it costs there.
    horizons : tuple of int
        Steps at which γ(T) is taken; empty: the default schedule.
    units : {"std", "raw"}
    max_memory : int or None
        Bytes that the sweep may hold, by the estimate of `tqs_onnx.scoring.plan.memory`; chunks are cut to it.
    blocks : Blocks or None
        None: every weight by itself.
    early_stop : EarlyStop or None
    group_test : bool
        Settle families of weights that look dead by one rollout (see `tqs_onnx.scoring.plan.group_test`).
    dead_below : float or None
        A weight whose γ_task is at or below this is dead (A.4; the paper's TimesFM: −50).
    dead_at_minimum : bool
        Weights below the noise floor that tie at the lowest γ_task are dead (A.4; the paper's Aurora).
    engine : {"local", "ray"}
        Who rolls out, this machine or a Ray cluster; what is measured depends on neither this nor the next two.
    address : str or None
        Of the cluster's head, ``host:port``; None: the cluster that this machine is part of, else one started here.
    workers : int or None
        Processes, or most actors on a cluster; None: one process, or as many actors as there is room for.
    strategy : Strategy or None
        How weights are injected; None: what the cost model says.

    Raises
    ------
    InputError
        A width is not one, the horizons do not increase, or an address is given without a cluster.
    """

    probe: Probe = field(default_factory=Probe)
    response_bits: tuple[int, ...] = (4, 2)
    horizons: tuple[int, ...] = ()
    units: Literal["std", "raw"] = "std"
    max_memory: int | None = None
    blocks: Blocks | None = None
    early_stop: EarlyStop | None = None
    group_test: bool = False
    dead_below: float | None = None
    dead_at_minimum: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None
    strategy: Strategy | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
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
        The last horizon lies beyond the steps.
    """
    if horizons and horizons[-1] > steps:
        raise InputError(
            f"horizon {horizons[-1]} lies beyond the {steps} steps of the rollout",
            todo="Roll out more steps, or ask for shorter horizons",
        )


def default_horizons(steps: int) -> tuple[int, ...]:
    """Return the horizon schedule: those of 1, 5, 10, 20, 40, 60, 120, 240, … below `steps`, and `steps`.

    >>> default_horizons(40)
    (1, 5, 10, 20, 40)
    >>> default_horizons(4)
    (1, 2, 4)
    """
    schedule = (1, 2) if steps < 5 else (1, 5, 10, 20, 40, 60, 120, 240, 480, 960)
    return (*(t for t in schedule if t < steps), steps)

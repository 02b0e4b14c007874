"""Facts about a session besides its measurements: its noise and rounding floors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Floors(_Frozen):
    """The floors of a session: how far rollouts differ without a perturbation (`tqs_onnx.scoring.measure.floors`).

    Attributes
    ----------
    noise : float
        Largest energy of one context between two nominal rollouts.
    rounding : float
        Largest energy of one context when the initial state changes by one unit in the last place.
    rounding_at : tuple of float
        `rounding` at every horizon; empty in files of earlier versions.
    """

    noise: float
    rounding: float
    rounding_at: tuple[float, ...] = ()

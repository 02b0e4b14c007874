"""What is known of a session beside its measurements: its noise and rounding floors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Floors(_Frozen):
    """What moves a rollout of a session when no weight is perturbed (see `tqs_onnx.scoring.measure.floors`).

    Attributes
    ----------
    noise : float
        Largest energy of one context between two nominal rollouts.
    rounding : float
        Largest energy of one context when the initial state moves by one unit in the last place.
    rounding_at : tuple of float
        The same at every horizon; empty in files of earlier versions.
    """

    noise: float
    rounding: float
    rounding_at: tuple[float, ...] = ()

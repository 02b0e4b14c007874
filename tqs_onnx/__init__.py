"""tqs-onnx: makes an ONNX forecasting model smaller where its rollout tolerates rounding errors.

    import tqs_onnx as tqs

    data = tqs.DataOptions("rollout.toml", "contexts.npz", "eval.npz")
    result = tqs.quantize("model.onnx", data, tqs.QuantizeOptions(tqs.Budget(compression=8)), out="run")
    print(result.summary())

The names below are imported on first use: importing the package starts no runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqs_onnx.allocation.budget import Budget as Budget
    from tqs_onnx.allocation.costing import PlanOptions as PlanOptions
    from tqs_onnx.allocation.objective import Objective as Objective
    from tqs_onnx.allocation.objective import RankBy as RankBy
    from tqs_onnx.allocation.tier_set import TierSet as TierSet
    from tqs_onnx.api import (
        allocate as allocate,
    )
    from tqs_onnx.api import (
        baseline as baseline,
    )
    from tqs_onnx.api import (
        emit as emit,
    )
    from tqs_onnx.api import (
        load_data as load_data,
    )
    from tqs_onnx.api import (
        made_contexts as made_contexts,
    )
    from tqs_onnx.api import (
        open_model as open_model,
    )
    from tqs_onnx.api import (
        package as package,
    )
    from tqs_onnx.api import (
        quantize as quantize,
    )
    from tqs_onnx.api import (
        score as score,
    )
    from tqs_onnx.api import (
        sweep as sweep,
    )
    from tqs_onnx.api import (
        verify as verify,
    )
    from tqs_onnx.inputs.bundled import demo_files as demo_files
    from tqs_onnx.inputs.data import DataOptions as DataOptions
    from tqs_onnx.jobs.axis import Axis as Axis
    from tqs_onnx.jobs.options import BaselineOptions as BaselineOptions
    from tqs_onnx.jobs.options import QuantizeOptions as QuantizeOptions
    from tqs_onnx.packaging.package import PackageOptions as PackageOptions
    from tqs_onnx.refinement.refine import RefineOptions as RefineOptions
    from tqs_onnx.rollout.contexts.context_set import Contexts as Contexts
    from tqs_onnx.rollout.options import RunOptions as RunOptions
    from tqs_onnx.rollout.spec.spec import RolloutSpec as RolloutSpec
    from tqs_onnx.rounding.assign import RoundingOptions as RoundingOptions
    from tqs_onnx.scoring.plan.options import Blocks as Blocks
    from tqs_onnx.scoring.plan.options import EarlyStop as EarlyStop
    from tqs_onnx.scoring.plan.options import ScoreOptions as ScoreOptions
    from tqs_onnx.scoring.plan.probe import Probe as Probe
    from tqs_onnx.version import VERSION as __version__  # noqa: N811
    from tqs_passes.errors import (
        GateError as GateError,
    )
    from tqs_passes.errors import (
        InfeasibleError as InfeasibleError,
    )
    from tqs_passes.errors import (
        InputError as InputError,
    )
    from tqs_passes.errors import (
        TqsError as TqsError,
    )
    from tqs_passes.plan.targets import Serving as Serving
    from tqs_passes.tier import Tier as Tier

_HOMES = {
    "tqs_onnx.api": (
        *("open_model", "load_data", "score", "allocate", "emit", "verify", "quantize", "sweep"),
        *("baseline", "made_contexts", "package"),
    ),
    "tqs_onnx.inputs.bundled": ("demo_files",),
    "tqs_onnx.inputs.data": ("DataOptions",),
    "tqs_onnx.jobs.options": ("QuantizeOptions", "BaselineOptions"),
    "tqs_onnx.jobs.axis": ("Axis",),
    "tqs_onnx.allocation.budget": ("Budget",),
    "tqs_onnx.allocation.costing": ("PlanOptions",),
    "tqs_onnx.allocation.objective": ("Objective", "RankBy"),
    "tqs_onnx.allocation.tier_set": ("TierSet",),
    "tqs_onnx.packaging.package": ("PackageOptions",),
    "tqs_onnx.refinement.refine": ("RefineOptions",),
    "tqs_onnx.rounding.assign": ("RoundingOptions",),
    "tqs_onnx.rollout.contexts.context_set": ("Contexts",),
    "tqs_onnx.rollout.options": ("RunOptions",),
    "tqs_onnx.rollout.spec.spec": ("RolloutSpec",),
    "tqs_onnx.scoring.plan.options": ("ScoreOptions", "Blocks", "EarlyStop"),
    "tqs_onnx.scoring.plan.probe": ("Probe",),
    "tqs_passes.errors": ("TqsError", "InputError", "GateError", "InfeasibleError"),
    "tqs_passes.plan.targets": ("Serving",),
    "tqs_passes.tier": ("Tier",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name == "__version__":
        return import_module("tqs_onnx.version").VERSION
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__

"""Where perturbed rollouts come from: the seam between the sweep and how weights are injected.

`ExposedWeights` opens one session whose scored weights are graph inputs: nominal and perturbed trajectories come
from the same compiled graph, and nothing is rebuilt between weights. The prepacking of exposed weights is lost
(1.08 to 1.37 times the forward time, measured on a 76 MB transformer at batch 16 and 1).
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from tqs_onnx.rollout.context_set import Contexts
from tqs_onnx.rollout.run import Engine, Trajectory
from tqs_onnx.rollout.session import Provider, SessionOptions, open_session
from tqs_onnx.rollout.spec import RolloutSpec
from tqs_passes.model_io import Model, serialize
from tqs_passes.perturb import Perturb, weight_values
from tqs_passes.weights import Weight


class Injection(Protocol):
    """A way to roll a model out with some weights replaced."""

    def values(self, weight: Weight) -> NDArray[Any]:
        """Return the nominal values of a weight, in its dtype."""
        ...

    def run(self, replaced: dict[str, NDArray[Any]]) -> Trajectory:
        """Roll out with the named weights replaced, all others nominal."""
        ...


class ExposedWeights:
    """One session with all given weights as inputs (see module docstring).

    Parameters
    ----------
    model : Model
        Lifted model.
    weights : tuple of Weight
    spec : RolloutSpec
    contexts : Contexts
    provider : str
    batch : int or None
        Most contexts a chunk.
    threads : int
        0: the runtime's choice.
    """

    def __init__(
        self,
        model: Model,
        weights: tuple[Weight, ...],
        spec: RolloutSpec,
        contexts: Contexts,
        *,
        provider: Provider = "cpu",
        batch: int | None = None,
        threads: int = 0,
    ) -> None:
        exposed = Perturb(tuple(w.name for w in weights)).apply(model)
        self.session = open_session(
            serialize(exposed.model.proto), provider=provider, options=SessionOptions(threads=threads)
        )
        self._engine = Engine(self.session, spec, contexts, batch=batch)
        self._arrays = {w.name: weight_values(model, w.name, w.dtype) for w in weights}
        self._nominal = {name: self.session.value(array) for name, array in self._arrays.items()}

    def values(self, weight: Weight) -> NDArray[Any]:
        """Return the nominal values of a weight, in its dtype."""
        return self._arrays[weight.name]

    def run(self, replaced: dict[str, NDArray[Any]], *, keep_other: bool = False) -> Trajectory:
        """Roll out with the named weights replaced, all others nominal."""
        changed = {name: self.session.value(array) for name, array in replaced.items()}
        return self._engine.run({**self._nominal, **changed}, keep_other=keep_other)

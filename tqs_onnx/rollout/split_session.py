"""One model in two sessions: a head, whose outputs can be kept, and a tail that takes them as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from tqs_onnx.rollout.session import Provider, Session, Value
from tqs_onnx.rollout.spec.signature import ModelSignature


class SplitSession:
    """Runs like the whole model; `tqs_passes.graph.split_model` describes the cut.

    Parameters
    ----------
    head, tail : Session
    cut : tuple of str
        Outputs of the head that are inputs of the tail.
    outputs : tuple of str
        Outputs of the whole model, in its order.
    """

    def __init__(self, head: Session, tail: Session, cut: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._head = head
        self._tail = tail
        self._cut = cut
        self._entries = [p.name for p in head.signature.inputs]
        self._late = {p.name for p in tail.signature.outputs}
        ports = {p.name: p for p in (*head.signature.outputs, *tail.signature.outputs)}
        self.provider: Provider = tail.provider
        self.device = tail.device
        self.placement = (
            None if head.placement is None or tail.placement is None else head.placement + tail.placement
        )
        self.signature = ModelSignature(
            tuple(p for p in tail.signature.inputs if p.name not in cut), tuple(ports[n] for n in outputs)
        )

    @property
    def on_host(self) -> bool:
        """Whether values are in host memory, so that reading them is free."""
        return self._tail.on_host

    def value(self, array: NDArray[Any]) -> Value:
        """Put an array on the device; see `Session.value`."""
        return self._tail.value(array)

    def run(
        self,
        inputs: Mapping[str, Value],
        outputs: Sequence[str] | None = None,
        *,
        where: str = "",
        kept: dict[str, Value] | None = None,
    ) -> dict[str, Value]:
        """Run the model once; see `Session.run`.

        Parameters
        ----------
        kept : dict of str to Value, optional
            The head's outputs for the same inputs; filled if empty.
        """
        names = [p.name for p in self.signature.outputs] if outputs is None else list(outputs)
        early = {} if kept is None else kept
        wanted = [*self._cut, *(n for n in names if n not in self._late and n not in self._cut)]
        if any(n not in early for n in wanted):
            early.update(self._head.run({n: inputs[n] for n in self._entries}, wanted, where=where))
        cut = {n: early[n] for n in self._cut}
        late = self._tail.run({**inputs, **cut}, [n for n in names if n in self._late], where=where)
        return {n: late[n] if n in late else early[n] for n in names}

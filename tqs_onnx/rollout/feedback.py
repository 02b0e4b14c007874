"""Feeds the outputs of one step back as the inputs of the next, on the device (see `rollout.update`)."""

from __future__ import annotations

from collections.abc import Mapping

from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.session import Session, Value, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.split_session import SplitSession
from tqs_onnx.rollout.update import build_update
from tqs_passes.errors import InputError


class FeedbackSession:
    """Computes the inputs of the next step; one instance serves every session of the same inputs and outputs.

    Parameters
    ----------
    spec : RolloutSpec
    session : Session or SplitSession
        A session whose inputs and outputs fit the spec; it is not kept.

    Attributes
    ----------
    fed : frozenset of str
        Outputs that are fed back.
    """

    def __init__(self, spec: RolloutSpec, session: Session | SplitSession) -> None:
        self._update = build_update(spec, session.signature)
        self._session: Session | None = None
        if self._update.model is not None and spec.rollout.steps > 1:
            # One thread: the graph only moves data, and a second thread pool would compete with the model's.
            options = SessionOptions(threads=1, device=session.device)
            self._session = open_session(self._update.model, provider=session.provider, options=options)
        fed = {output for kind, output in self._update.feeds.values() if kind == "output"}
        self.fed = frozenset(fed | set(self._update.direct.values()))
        grown = [(f.input, f.axis) for f in spec.feedback if f.mode == "grow"]
        filled = [(f.input, f.axis) for f in spec.fill if f.mode == "grow"]
        self._grown: dict[str, int | None] = dict([*grown, *filled])

    def advance(
        self,
        inputs: Mapping[str, Value],
        outputs: Mapping[str, Value],
        forcing: Mapping[str, Value],
        step: int,
    ) -> dict[str, Value]:
        """Return the inputs of a step.

        Parameters
        ----------
        inputs, outputs : mapping of str to Value
            Of the previous step; the outputs must include those of `fed`.
        forcing : mapping of str to Value
            Forced inputs of this step.
        step : int
            Number of the step, from 1.

        Raises
        ------
        InputError
            An input would change its shape along an axis that does not grow.
        """
        following = {**inputs, **forcing}
        following.update({name: outputs[source] for name, source in self._update.direct.items()})
        if self._session is not None:
            pools = {"current": inputs, "output": outputs, "forcing": forcing}
            feeds = {feed: pools[kind][name] for feed, (kind, name) in self._update.feeds.items()}
            results = self._session.run(feeds, where=f"feedback before step {step}")
            following.update({self._update.results[r]: v for r, v in results.items()})
        for name, value in following.items():
            before, axis = inputs[name].shape, self._grown.get(name)
            same = len(before) == len(value.shape) and all(
                b == v for i, (b, v) in enumerate(zip(before, value.shape, strict=True)) if i != axis
            )
            if not same:
                raise InputError(
                    f"input {name!r} was {list(before)} and would become {list(value.shape)}",
                    where=f"feedback before step {step}",
                    todo="Change select, expand, axis, mode or into in its [[feedback]]",
                )
        return following

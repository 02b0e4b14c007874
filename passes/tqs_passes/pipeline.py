"""Applies graph passes in order and checks the model after each: all changes to a graph are one readable list.

::

    model ─▶ pass 1 ─▶ sound? ─▶ pass 2 ─▶ sound? ─▶ … ─▶ result: the model, and what each pass changed and skipped

The check (`tqs_passes.graph.soundness`) does not read stored values. A pass is compared with its own input model, so it
is not blamed for faults of the source. At the level DEBUG, one line lists the changes of each pass, and one line per
reason lists its skips.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tqs_passes.errors import PassError, one_line
from tqs_passes.files.model import Model
from tqs_passes.graph.soundness import Soundness, soundness
from tqs_passes.graph_pass import GraphPass, PassResult, Skip

_LOG = logging.getLogger(__name__)
#: Maximum number of names in one log line.
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Applied:
    """The effect of one pass of a pipeline.

    Parameters
    ----------
    name : str
        Name of the pass.
    changed : tuple of str
    skipped : tuple of Skip
        The skips of its `PassResult`.
    """

    name: str
    changed: tuple[str, ...]
    skipped: tuple[Skip, ...]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The result of a pipeline.

    Parameters
    ----------
    model : Model
        The new model, or the input model itself if no pass changed anything.
    passes : tuple of Applied
        The effect of each pass, in order.
    """

    model: Model
    passes: tuple[Applied, ...]

    def skipped_by(self, name: str) -> tuple[Skip, ...]:
        """Return the skips of the passes with this name."""
        return tuple(skip for applied in self.passes if applied.name == name for skip in applied.skipped)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in order of application (see the module docstring).

    Parameters
    ----------
    passes : tuple of GraphPass
    """

    passes: tuple[GraphPass, ...]

    @classmethod
    def of(cls, *passes: GraphPass | None) -> Pipeline:
        """Return the pipeline of these passes; None stands for a pass that was not requested."""
        return cls(tuple(each for each in passes if each is not None))

    def apply(self, model: Model) -> PipelineResult:
        """Return the model after all passes, and the effect of each of them; `model` is not mutated.

        Raises
        ------
        PassError
            A pass returned a model that is not sound although its input was.
        TqsError
            A pass refused the model; a note on the error names the pass and those that ran before it.
        """
        source: Soundness | None = None
        applied: list[Applied] = []
        for step in self.passes:
            result = _result_of(step, model, applied)
            if result.model is not model:
                source = source or soundness(model.proto)  # no earlier pass has changed the model
                found = soundness(result.model.proto)
                complaint = found.worse_than(source)
                if complaint is not None:
                    raise PassError(step.name, tuple(a.name for a in applied), complaint)
                source = found
            applied.append(Applied(step.name, result.changed, result.skipped))
            _log(applied[-1])
            model = result.model
        return PipelineResult(model, tuple(applied))


def _result_of(step: GraphPass, model: Model, before: Sequence[Applied]) -> PassResult:
    """Return the result of a pass; an error that it raises is re-raised with a note that names the pass."""
    try:
        return step.apply(model)
    except Exception as error:
        earlier = ", ".join(applied.name for applied in before) or "no other"
        error.add_note(f"raised by the pass {step.name}; passes that ran before it: {earlier}")
        raise


def _log(applied: Applied) -> None:
    if not _LOG.isEnabledFor(logging.DEBUG):
        return
    n = len(applied.changed)
    changed = f"{n} tensors" if n > 1 else one_line(applied.changed[0]) if n else "nothing"
    _LOG.debug("%s: changed %s", applied.name, changed)
    reasons: dict[str, list[str]] = defaultdict(list)
    for skip in applied.skipped:
        reasons[skip.why].append(skip.what)
    for why, names in reasons.items():
        shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
        _LOG.debug("%s: skipped %d, %s: %s", applied.name, len(names), one_line(why), one_line(shown))

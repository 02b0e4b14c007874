"""Apply graph passes in order, each checked after it ran: what is done to a graph is one list, readable in one place.

::

    model ─▶ pass 1 ─▶ sound? ─▶ pass 2 ─▶ sound? ─▶ … ─▶ result: the model, and what each pass changed and skipped

The check (`tqs_passes.graph.soundness`) does not look at stored values. A pass is held to the model it started from:
what was wrong in the source already is not its fault. At the level DEBUG one line tells what each pass changed, and
one line for each reason what it skipped.
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
#: Names shown in one line of the log.
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Applied:
    """What one pass of a pipeline did.

    Parameters
    ----------
    name : str
        Name of the pass.
    changed : tuple of str
    skipped : tuple of Skip
        As its `PassResult` says.
    """

    name: str
    changed: tuple[str, ...]
    skipped: tuple[Skip, ...]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What a pipeline did.

    Parameters
    ----------
    model : Model
        The new model; the input model itself when no pass changed anything.
    passes : tuple of Applied
        One for each pass, in order.
    """

    model: Model
    passes: tuple[Applied, ...]

    def skipped_by(self, name: str) -> tuple[Skip, ...]:
        """Return what the passes of this name skipped."""
        return tuple(skip for applied in self.passes if applied.name == name for skip in applied.skipped)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in the order they are applied (see module docstring).

    Parameters
    ----------
    passes : tuple of GraphPass
    """

    passes: tuple[GraphPass, ...]

    @classmethod
    def of(cls, *passes: GraphPass | None) -> Pipeline:
        """Return the pipeline of these passes; None stands for one that was not asked for."""
        return cls(tuple(each for each in passes if each is not None))

    def apply(self, model: Model) -> PipelineResult:
        """Return the model after every pass, and what each of them did; `model` is left untouched.

        Raises
        ------
        PassError
            A pass gave a model that is not sound where the source was.
        TqsError
            A pass refused the model; a note of the error names the pass and those that ran before it.
        """
        source: Soundness | None = None
        applied: list[Applied] = []
        for step in self.passes:
            result = _result_of(step, model, applied)
            if result.model is not model:
                source = source or soundness(model.proto)  # nothing before this pass made another model
                complaint = soundness(result.model.proto).worse_than(source)
                if complaint is not None:
                    raise PassError(step.name, tuple(a.name for a in applied), complaint)
            applied.append(Applied(step.name, result.changed, result.skipped))
            _log(applied[-1])
            model = result.model
        return PipelineResult(model, tuple(applied))


def _result_of(step: GraphPass, model: Model, before: Sequence[Applied]) -> PassResult:
    """Return what a pass does to a model; an error that it raises goes on with a note of where it was."""
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

"""Decide which output re-enters which input: what is certain is used, what is ambiguous becomes a question.

Evidence, strongest first: metadata of the exporter; names (`h0` and `hn`, `state` and `stateN`, `next`); inputs that
recurrent nodes take as initial states; arrays of rank above that of everything else; and how the model behaves when
it is called. A model with recurrent states gets its other inputs from outside at every step, unless a name says that
an output is their next value: a mask has the shape of the spectrum that it is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tqs_onnx.rollout.draft import names
from tqs_onnx.rollout.draft.behaviour import Behaviour
from tqs_onnx.rollout.draft.metadata import Declared
from tqs_onnx.rollout.draft.pairs import Pair, Shape, Way, pair_of


@dataclass(frozen=True, slots=True)
class Link:
    """A pair that is used, and why; `state`: what it carries is no forecast."""

    pair: Pair
    why: str
    state: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What the owner has to say.

    Parameters
    ----------
    about : str
        Name of the output.
    text : str
        One sentence that ends in a question mark.
    pairs : tuple of Pair
        The answers; for a pair with choices, one for each choice.
    """

    about: str
    text: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Clues:
    """What is known of a model before its wiring.

    Parameters
    ----------
    inputs, outputs : dict of str to tuple of int
        Shape of each floating-point input and output of one case.
    free : frozenset of str
        Inputs, and outputs if the model was not called, with a symbolic axis besides the batch.
    bounded : dict of str to str
        Outputs that a Sigmoid, Softmax or the like makes, and the operator.
    initial : frozenset of str
        Inputs that recurrent nodes take as initial states.
    apart : frozenset of (str, str)
        (output, input) whose batch lies on different axes.
    declared : Declared or None
    behaviour : Behaviour or None
        None if the model was not called.
    """

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    free: frozenset[str]
    bounded: Mapping[str, str]
    initial: frozenset[str]
    apart: frozenset[tuple[str, str]]
    declared: Declared | None
    behaviour: Behaviour | None

    def pair(self, output: str, target: str) -> Pair | None:
        """Return how an output can enter an input by shape; None if it cannot."""
        if (output, target) in self.apart:
            return None
        out, into = self.outputs[output], self.inputs[target]
        if self.behaviour is None and self.free & {output, target} and out != into:
            return None  # the sizes of symbolic axes are not known
        grown = self._grown(output, target)
        if grown is not None:
            return grown
        return pair_of(output, out, target, into)

    def _grown(self, output: str, target: str) -> Pair | None:
        """Return the pair of a cache and the whole of it after it grew: `past.0.key`, `present.0.key`."""
        out, into = self.outputs[output], self.inputs[target]
        named = names.is_state(target) and names.same_stem(output, target)
        if target not in self.free or len(out) != len(into) or not named:
            return None
        grew = [axis for axis, (a, b) in enumerate(zip(out, into, strict=True)) if a != b]
        if len(grew) != 1 or out[grew[0]] < into[grew[0]]:
            return None
        (axis,) = grew
        return Pair(output, target, Way.GROWN, axis, select=(axis, into[axis] - out[axis], 0))

    def judged(self, output: str) -> str:
        """Return why an output is no next value of anything, or an empty string."""
        if output in self.bounded:
            return f"{self.bounded[output]} makes it"
        return "its name says so" if names.is_judged(output) else ""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The links that are used, the questions that are left, and remarks on what is not fed back."""

    links: tuple[Link, ...] = ()
    questions: tuple[Question, ...] = ()
    remarks: tuple[str, ...] = ()


def wire(clues: Clues) -> Wiring:
    """Decide; see the module docstring. The result depends on the clues only."""
    if clues.declared is not None:
        return _as_declared(clues, clues.declared)
    states = _states(clues)
    fed = {link.pair.input for link in states}
    used = {link.pair.output for link in states}
    rest = [
        pair
        for output in clues.outputs
        if output not in used
        for target in clues.inputs
        if target not in fed and (pair := clues.pair(output, target)) is not None
    ]
    return _streaming(clues, states, rest) if states else _forecasts(clues, rest)


def _as_declared(clues: Clues, said: Declared) -> Wiring:
    why = f"the metadata that {said.source} wrote"
    links = [
        Link(pair, why, state=True)
        for output, target in said.states
        if output in clues.outputs and target in clues.inputs
        if (pair := clues.pair(output, target)) is not None
    ]
    known = said.target in clues.inputs and said.forecast in clues.outputs
    pair = clues.pair(said.forecast, said.target) if known else None
    if pair is not None and said.rolls and not pair.choices:
        links.append(Link(pair, why))
        return Wiring(tuple(links))
    if pair is not None and said.rolls:
        return Wiring(tuple(links), (_asked(clues, pair, ""),))
    reason = "its shape does not fit" if said.rolls else "the metadata says that it is no single forecast"
    return Wiring(tuple(links), (), (f"{said.forecast!r} is not fed back to {said.target!r}: {reason}",))


def _states(clues: Clues) -> list[Link]:
    """Return the recurrent states: by name, then as initial states of recurrent nodes, then by rank."""
    frames = [
        pair
        for output in clues.outputs
        for target in clues.inputs
        if (pair := clues.pair(output, target)) is not None
        and pair.way in (Way.FRAME, Way.GROWN)
        and pair.expand is None
    ]
    links: list[Link] = []

    def take(pair: Pair, why: str) -> None:
        taken = {link.pair.input for link in links} | {link.pair.output for link in links}
        if pair.input not in taken and pair.output not in taken:
            links.append(Link(pair, why, state=True))

    alone = len(clues.inputs) == 1
    for pair in frames:
        carried = names.is_state(pair.input) or pair.input in clues.initial
        if names.same_stem(pair.output, pair.input) and carried and not alone:
            take(pair, "names and shapes are those of a state")
    for pair in frames:
        rivals = [p for p in frames if p.input == pair.input or p.output == pair.output]
        if (pair.input in clues.initial or names.is_state(pair.output)) and not alone and len(rivals) == 1:
            take(pair, "a state of this shape has no other source")
    if not links and len({pair.input for pair in frames}) > 1:
        rank = {pair.input: len(clues.inputs[pair.input]) for pair in frames}
        highest = max(rank.values())
        top = [pair for pair in frames if rank[pair.input] == highest]
        if highest >= 3 > min(rank.values()) and len(top) == len({pair.input for pair in top}):
            for pair in top:
                take(pair, "a state: its rank is above that of the other arrays")
    return links


def _streaming(clues: Clues, states: list[Link], rest: list[Pair]) -> Wiring:
    links, questions, remarks = list(states), list[Question](), list[str]()
    fed: set[str] = set()
    for pair in rest:
        if pair.output in {link.pair.output for link in links} or pair.input in fed:
            continue
        judged = clues.judged(pair.output)
        if judged:
            if pair.way is Way.FRAME:
                remarks.append(
                    f"{pair.output!r} has the shape of {pair.input!r} and is not fed back: {judged}"
                )
            continue
        if pair.way is Way.FRAME and _named(pair):
            links.append(Link(pair, "its name says that it is the next value"))
            fed.add(pair.input)
            continue
        if pair.way in (Way.FRAME, Way.ROW, Way.SERIES):
            text = (
                f"Is {pair.output!r} the next {pair.input!r}? The model carries a state, "
                f"so {pair.input!r} is taken as given at every step: a forcing."
            )
            questions.append(Question(pair.output, text, (pair,)))
    return Wiring(tuple(links), tuple(questions), tuple(remarks))


def _forecasts(clues: Clues, rest: list[Pair]) -> Wiring:
    """Wire a model without states: each output continues at most one input."""
    links: list[Link] = []
    questions: list[Question] = []
    remarks: list[str] = []
    for output in clues.outputs:
        fed = {link.pair.input for link in links}
        pairs = [pair for pair in rest if pair.output == output and pair.input not in fed]
        if not pairs:
            continue
        judged = clues.judged(output)
        pairs = _likeliest(pairs)
        if judged:
            remarks.append(f"{output!r} is not fed back: {judged}")
            if len(pairs) == 1 and pairs[0].way is Way.SERIES and output in clues.bounded:
                questions.append(_asked(clues, pairs[0], ""))
            continue
        if len(pairs) > 1:
            which = ", ".join(repr(pair.input) for pair in pairs)
            questions.append(
                Question(output, f"Which input does {output!r} continue: {which}?", tuple(pairs))
            )
            continue
        (pair,) = pairs
        why = _certain(clues, pair)
        if why and (clues.behaviour is None or clues.behaviour.stays_bounded(pair)):
            links.append(Link(pair, why))
        else:
            questions.append(_asked(clues, pair, why))
    return Wiring(tuple(links), tuple(questions), tuple(remarks))


def _likeliest(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs of one output that names prefer; all of them if names say nothing."""
    named = [pair for pair in pairs if names.same_stem(pair.output, pair.input)]
    if named:
        return named
    plain = [p for p in pairs if not names.is_fixed(p.input) and not names.is_given(p.input)]
    plain = plain or pairs
    frames = [pair for pair in plain if not pair.choices and pair.way is not Way.LINE]
    return frames or plain


def _named(pair: Pair) -> bool:
    """Return whether names say that the output is the next value of the input."""
    same = names.same_stem(pair.output, pair.input) and not names.says_nothing(pair.input)
    return same or names.is_next(pair.output)


def _certain(clues: Clues, pair: Pair) -> str:
    """Return why a pair is certain, or an empty string."""
    if pair.choices:
        return ""
    named = _named(pair)
    follows = clues.behaviour is not None and clues.behaviour.follows(pair)
    rank = len(clues.inputs[pair.input])
    if pair.way is Way.LINE:
        single = rank == 1 and clues.inputs[pair.input][0] >= 8
        return "called, it continues its window as a series goes on" if follows and single else ""
    if pair.way is Way.ROW and rank >= 4:
        return "the history of states lacks only this one"
    if pair.way is Way.FRAME:
        if named:
            return "equal shape, and its name says that it is the next value"
        generic = names.says_nothing(pair.output) or names.says_nothing(pair.input)
        if follows and generic and rank != 2:
            return "equal shape, and called with its own result it moves on as a state does"
        return ""
    if named:
        return f"{pair.way.value}, and its name says that it is a forecast"
    if follows:
        return f"{pair.way.value}, and called, it continues its window as a series goes on"
    return ""


def _asked(clues: Clues, pair: Pair, unbounded: str) -> Question:
    """Return the question that a pair leaves open; `unbounded`: why it looks certain, though it grows without bound."""
    o, i = repr(pair.output), repr(pair.input)
    if unbounded:
        text = f"Is {o} the next {i}? It looks so ({unbounded}), but fed back it grows without bound."
    elif pair.way is Way.FEATURE:
        text = f"Which of the {pair.choices} features of {i} does {o} continue, if any?"
    elif pair.way is Way.PARTS:
        text = f"Which of the {pair.choices} parts of {o} is the value to feed back into {i}?"
    elif pair.way is Way.LINE:
        text = f"Is the axis of {i} along which {o} is shorter time, so that {o} continues it, or are they features?"
    else:
        text = f"Is {o} the next value of {i}, or something else of its shape?"
    return Question(pair.output, text, (pair,) if not pair.choices else tuple(_choices(clues, pair)))


def _choices(clues: Clues, pair: Pair) -> list[Pair]:
    if pair.way is Way.PARTS:
        last = len(clues.outputs[pair.output]) - 1
        return [replace(pair, select=(last, k, k), choices=0) for k in range(pair.choices)]
    return [replace(pair, feature=k, choices=0) for k in range(pair.choices)]

"""The tiers that each weight may get: those allowed for all weights, and rules by name.

A rule is `PATTERN=TIER[,TIER…]`, where PATTERN is a shell pattern for a weight's name or label. A *pin* allows a weight
only the named tiers, even those not allowed for all weights; a *ban* removes tiers. A weight matched by several pins
gets the tiers they have in common. FP32 means keeping a weight as it is stored, whatever its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqs_onnx.allocation.ties import require_match
from tqs_passes.errors import InputError
from tqs_passes.tier import DEFAULT_TIERS, KEEP_TIER, Tier, parse_tiers
from tqs_passes.weights import Weight

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TierRule:
    """A pattern and the tiers of the weights that it matches."""

    pattern: str
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class TierSet:
    """The allowed tiers.

    Parameters
    ----------
    tiers : tuple of Tier
        For every weight that no rule matches; every weight may also stay unchanged.
    pins, bans : tuple of TierRule
        See the module docstring.
    """

    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    pins: tuple[TierRule, ...] = ()
    bans: tuple[TierRule, ...] = ()

    def exceptions(self, weights: Sequence[Weight]) -> dict[str, frozenset[Tier]]:
        """Return the tiers of every weight that a rule matches, by its name.

        Raises
        ------
        InputError
            A rule matches no weight, or the rules leave a weight without a tier; the message names these weights.
        """
        for rule in (*self.pins, *self.bans):
            require_match(weights, rule.pattern)
        found: dict[str, frozenset[Tier]] = {}
        for weight in weights:
            keep = KEEP_TIER[weight.dtype]
            pins = [_of(rule, keep) for rule in self.pins if weight.matches(rule.pattern)]
            bans = [_of(rule, keep) for rule in self.bans if weight.matches(rule.pattern)]
            if not pins and not bans:
                continue
            allowed = frozenset.intersection(*pins) if pins else frozenset({*self.tiers, keep})
            found[weight.name] = allowed.difference(*bans)
        refuse([w for w in weights if found.get(w.name) == frozenset()], "the rules leave no tier")
        return found


def refuse(weights: Sequence[Weight], what: str) -> None:
    """Refuse a choice that is impossible for some weights.

    Raises
    ------
    InputError
        `weights` is not empty; the message names the first ones.
    """
    if not weights:
        return
    names = ", ".join(repr(w.label) for w in weights[:_SHOWN])
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    raise InputError(f"{what} for weight {names}{more}", todo="Change `pin` or `forbid`")


def parse_rule(text: str, option: str) -> TierRule:
    """Return the rule in ``PATTERN=TIER[,TIER…]``.

    Raises
    ------
    InputError
        The text is not a rule, or a tier is unknown.

    Examples
    --------
    >>> parse_rule("head.*=INT8,FP16", "pin").tiers
    (<Tier.FP16: 'FP16'>, <Tier.INT8: 'INT8'>)
    """
    pattern, sign, tiers = text.rpartition("=")
    if not sign or not pattern:
        raise InputError(f"`{option}` {text!r} is not a rule", todo=f"Write e.g. `{option}` 'head.*=INT8'")
    return TierRule(pattern, parse_tiers(tiers))


def _of(rule: TierRule, keep: Tier) -> frozenset[Tier]:
    """Return a rule's tiers for a weight that `keep` stores unchanged."""
    return frozenset(keep if t is Tier.FP32 and keep.bits < t.bits else t for t in rule.tiers)

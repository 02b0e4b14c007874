"""Tie groups: weights that share one tier because they were scored as a block or a pattern ties them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tqs_passes.errors import InputError
from tqs_passes.plan.candidates import Menu
from tqs_passes.weights import Weight


def require_match(weights: Sequence[Weight], pattern: str) -> None:
    """Refuse a pattern that matches no weight.

    Raises
    ------
    InputError
        The pattern matches no weight.
    """
    if not any(w.matches(pattern) for w in weights):
        raise InputError(f"pattern {pattern!r} matches no weight", todo="tqs inspect lists the names")


def tie_groups(
    menus: Sequence[Menu], blocks: Mapping[str, str], patterns: Sequence[str]
) -> Iterator[tuple[str, tuple[Menu, ...]]]:
    """Yield (name, members) of every group, by first member; the name is empty for a single weight.

    Parameters
    ----------
    menus : sequence of Menu
    blocks : mapping of str to str
        Maps a weight to the block it was scored with.
    patterns : sequence of str
        Each pattern ties the weights that it matches and removes them from their blocks.

    Raises
    ------
    InputError
        A pattern matches no weight, or two patterns match the same weight.
    """
    group_of = dict(blocks)
    taken: dict[str, str] = {}
    for pattern in patterns:
        require_match([m.weight for m in menus], pattern)
        for weight in (m.weight for m in menus if m.weight.matches(pattern)):
            if weight.name in taken:
                raise InputError(
                    f"weight {weight.label!r} is tied by {taken[weight.name]!r} and by {pattern!r}",
                    todo="Let only one `tie` match it",
                )
            taken[weight.name] = group_of[weight.name] = pattern
    members: dict[tuple[str, str], list[Menu]] = {}
    for menu in menus:
        name = menu.weight.name
        members.setdefault((group_of.get(name, ""), "" if name in group_of else name), []).append(menu)
    for (group, _), found in members.items():
        yield (group if len(found) > 1 else "", tuple(found))

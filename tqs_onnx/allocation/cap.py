"""The paper's FP32 cap (A.5): at most n weights keep FP32, one per block; the rest drop to 16 bits.

The knapsack is first solved without a cap. Of the weights and tie groups that it keeps in FP32, only the most sensitive
of each block, and of those only the n most sensitive, may keep it; FP32 is removed from all others. In such a tie
group the most sensitive member keeps FP32 and the others get the finest other tier. The knapsack is then solved again
to spend the bytes saved. A weight that can be stored in no other way does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tqs_onnx.allocation.choice import Bundle
from tqs_onnx.allocation.offers import Entry, limited
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError


def capped(
    entries: Sequence[Entry], chosen: Sequence[Bundle], n: int, blocks: Mapping[str, str]
) -> list[Entry]:
    """Return the entries with FP32 removed from all but the representatives.

    Parameters
    ----------
    entries : sequence of Entry
    chosen : sequence of Bundle
        The choice of each entry without a cap.
        Largest number of weights in FP32.
        Most weights in FP32.
        Maps a weight to the block it was scored with.
        Weight to the block it was scored with.

    Raises
    ------
    InputError
        `n` is negative.
    """
    if n < 0:
        raise InputError(f"is {n}, but must not be negative", where="`max_fp32`", todo="Give 0 or more")
    held = [e for e, b in zip(entries, chosen, strict=True) if _is_kept(b) and _can_do_without(e)]
    held.sort(key=lambda e: (-e.item.gamma, e.item.name))
    first: dict[str, str] = {}
    for entry in held:
        first.setdefault(blocks.get(entry.item.name) or f"\0{entry.item.name}", entry.item.name)
    stay = frozenset(list(first.values())[:n])
    return [_represented(e) if e.item.name in stay else _without(e) for e in entries]


def _is_kept(bundle: Bundle) -> bool:
    return all(c.assignment.form is Form.KEEP for c in bundle.candidates)


def _can_do_without(entry: Entry) -> bool:
    return not all(_is_kept(b) for b in entry.bundles)


def _without(entry: Entry) -> Entry:
    return limited(entry, [b for b in entry.bundles if not _is_kept(b)]) if _can_do_without(entry) else entry


def _represented(entry: Entry) -> Entry:
    """Return the entry of a tie group with an FP32 choice that keeps one member only; a single weight unchanged."""
    keep = entry.item.fp32_choice
    if len(entry.menus) == 1 or keep is None:
        return entry
    other = next(i for i, b in enumerate(entry.bundles) if not _is_kept(b))
    lower, whole = entry.bundles[other], entry.bundles[keep]
    errors = [c.assignment.error_energy for c in lower.candidates]
    weights = [a * e for a, e in zip(entry.amplifications[other], errors, strict=True)]
    one = max(range(len(errors)), key=lambda i: (weights[i], errors[i], -i))
    picked = tuple(
        w if i == one else c for i, (w, c) in enumerate(zip(whole.candidates, lower.candidates, strict=True))
    )
    bundle = Bundle(picked, whole.tier)
    row = tuple(0.0 if i == one else a for i, a in enumerate(entry.amplifications[other]))
    saved = errors[one] / sum(errors) if sum(errors) > 0 else 0.0
    costs, sizes = list(entry.item.costs), list(entry.item.sizes)
    costs[keep] = costs[other] + (costs[keep] - costs[other]) * saved
    sizes[keep] = bundle.n_bytes
    item = replace(entry.item, costs=tuple(costs), sizes=tuple(sizes))
    bundles = tuple(bundle if i == keep else b for i, b in enumerate(entry.bundles))
    rows = tuple(row if i == keep else r for i, r in enumerate(entry.amplifications))
    return Entry(entry.menus, entry.block, bundles, rows, item)

"""List every way to store a weight, each with its exact bytes and its rounding error.

These are the choices of the knapsack: tier × grid × channel axis × scale type. Candidates are Pareto-optimal in
(bytes, error): row tiers across all tiers, others within their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_passes.encode.planes import MIN_OPSET
from tqs_passes.encode.static import Range, range_between
from tqs_passes.encode.weight import (
    BF16_OPSET,
    CAST_OPSET,
    ROUNDED,
    Encoding,
    Form,
    Target,
    decoded_cast,
    encode_cast,
    encode_codes,
    encode_kept,
    np_dtype,
    tensor_type,
)
from tqs_passes.files.debug_notes import kept_size
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.files.wire import field_size
from tqs_passes.graph.names import Names, names_in, opset_of
from tqs_passes.graph.readers import convolved, followers_in, readers_in
from tqs_passes.grids.grid import Codes, broadcast_shape
from tqs_passes.grids.rounding_error import Pricer
from tqs_passes.grids.row_tiers import parts_of
from tqs_passes.grids.scales import DEFAULT_ROUNDING, FreeRounding
from tqs_passes.plan.assigned import reference_weight, target_of
from tqs_passes.plan.forms import Profile, Setting, offered_forms, scale_axes, takes_dynamic, takes_static
from tqs_passes.plan.plan import Assignment, ServingTarget
from tqs_passes.plan.row_offers import Channels, row_tiers
from tqs_passes.plan.targets import Serving, refusal, serves
from tqs_passes.tier import KEEP_TIER, Tier, offered
from tqs_passes.weights import Weight

#: With more scales than this share of the values, quantisation saves too little.
_MAX_SCALE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store a weight.

    Parameters
    ----------
    assignment : Assignment
    shared : dict of str to int
        Bytes of the pieces that it shares with other weights (look-up tables, shapes), by key.
    """

    assignment: Assignment
    shared: dict[str, int]


@dataclass(frozen=True, slots=True)
class Menu:
    """The candidates of one weight, largest first; the first keeps the weight unchanged, unless that is excluded.

    Among candidates of single tiers, none is dominated by another of its tier; row tiers are dominated by none. The
    forms `dynamic` and `static` repeat candidates: they are for those who spend time as well as bytes.
    """

    weight: Weight
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Kitchen:
    """Everything besides the weight that candidates depend on.

    Parameters
    ----------
    model : Model
        Lifted model.
    opset : int
    names : Names
        The names that the model uses.
    setting : Setting
        The setting that decides the forms.
    serving : Serving
        What the file is made for; candidates that its target cannot serve are left out.
    rounding : {"rtn", "mse", "unbiased"}
        Rule that chooses the scales (see `tqs_passes.grids.scales`).
    rounded : Form or None
        Also offer readers that round their inputs to 8 bits: `dynamic` at every call, `static` with ranges that
        `with_ranges` fills in; None: no such form.
    """

    model: Model
    opset: int
    names: Names
    setting: Setting
    serving: Serving = field(default_factory=Serving)
    rounding: FreeRounding = DEFAULT_ROUNDING
    rounded: Form | None = None


def kitchen_of(
    model: Model,
    profile: Profile,
    serving: Serving | None = None,
    rounding: FreeRounding = DEFAULT_ROUNDING,
    *,
    rounded: bool = False,
) -> Kitchen:
    """Collect what the candidates of a lifted model depend on; see `Kitchen`."""
    opset, serving = opset_of(model.proto), (serving or Serving()).under(profile)
    setting = Setting(profile, opset, readers_in(model), serving, followers_in(model.proto.graph))
    form = None if not rounded else Form.STATIC if profile == "qdq" else Form.DYNAMIC
    return Kitchen(model, opset, names_in(model), setting, serving, rounding, form)


def menus(
    kitchen: Kitchen,
    weights: tuple[Weight, ...],
    tiers: tuple[Tier, ...],
    exceptions: Mapping[str, frozenset[Tier]] | None = None,
) -> tuple[Menu, ...]:
    """Return the candidates of every weight, in order; the cost is one rounding per tier, grid and axis.

    Parameters
    ----------
    kitchen : Kitchen
    weights : tuple of Weight
    tiers : tuple of Tier
        Tiers offered in addition to keeping a weight unchanged.
    exceptions : mapping of str to frozenset of Tier, optional
        Tiers that replace the offer for single weights: their menus may lack the stored form and may be empty.
    """
    stored = {t.name: t for t in kitchen.model.proto.graph.initializer}
    only = exceptions or {}
    found = tuple(
        _menu(
            kitchen,
            weight,
            stored[kitchen.model.stored_name(weight.name)],
            index,
            tiers,
            only.get(weight.name),
        )
        for index, weight in enumerate(weights)
    )
    return _in_pairs(found, kitchen.setting)


def _in_pairs(found: tuple[Menu, ...], setting: Setting) -> tuple[Menu, ...]:
    """Withdraw the form `dynamic` from a matrix of an LSTM whose other matrix cannot have it."""
    offers = {
        m.weight.name: setting.readers[m.weight.name]
        for m in found
        if any(c.assignment.form is Form.DYNAMIC for c in m.candidates)
    }
    halves = Counter(tuple(node.output) for node in offers.values() if node.op_type == "LSTM")
    alone = {name for name, node in offers.items() if halves[tuple(node.output)] == 1}
    return tuple(
        replace(m, candidates=tuple(c for c in m.candidates if c.assignment.form is not Form.DYNAMIC))
        if m.weight.name in alone
        else m
        for m in found
    )


def _menu(
    kitchen: Kitchen,
    weight: Weight,
    tensor: onnx.TensorProto,
    index: int,
    tiers: tuple[Tier, ...],
    only: frozenset[Tier] | None,
) -> Menu:
    values = np.asarray(tensor_array(tensor, kitchen.model.folder))
    pricer = Pricer(values, np_dtype(weight.dtype), kitchen.rounding)
    keep = Assignment(
        weight=weight.name,
        label=weight.label,
        shape=weight.shape,
        dtype=weight.dtype,
        tier=KEEP_TIER[weight.dtype],
        form=Form.KEEP,
        rounding="keep",
        n_bytes=field_size(kept_size(tensor)),
        error_energy=0.0,
    )
    if tensor.data_type != tensor_type(weight.dtype):  # a block computes with the weight in another type
        keep = _converted(keep, target_of(keep, index, kitchen.opset, kitchen.names), values)
    found = [Candidate(keep, {})]
    channels: list[Channels] = []
    wanted = tiers if only is None else tuple(t for t in Tier if t in only)
    reader = kitchen.setting.readers.get(weight.name)
    for tier in offered(wanted, weight.dtype)[1:]:
        target = target_of(keep, index, kitchen.opset, kitchen.names, reader, kitchen.setting.followers)
        if tier.is_integer and pricer.in_range and kitchen.opset >= MIN_OPSET:
            rounded = _integer(kitchen, weight, keep, target, tier, pricer)
            found.extend(candidate for candidate, _ in rounded)
            channels.extend(c for _, c in rounded if c is not None)
        elif not tier.is_integer and kitchen.opset >= (BF16_OPSET if tier is Tier.BF16 else CAST_OPSET):
            found.extend(_half(keep, target, tier, pricer))
    if only is not None and keep.tier not in only:
        found = found[1:]
    plain = _undominated(found)
    menu = _with_rows(plain, channels, target_of(keep, index, kitchen.opset, kitchen.names))
    if kitchen.rounded is not None:
        target = target_of(keep, index, kitchen.opset, kitchen.names, reader, kitchen.setting.followers)
        menu = _with_rounded(
            kitchen, weight, menu, target, kitchen.rounded, pricer if Tier.INT7 in wanted else None
        )
    return Menu(weight, menu)


def _converted(keep: Assignment, target: Target, values: NDArray[np.generic]) -> Assignment:
    error = reference_weight(keep, values).astype(np.float64) - values.astype(np.float64)
    update = {
        "n_bytes": encode_kept(target, values).n_bytes(),
        "error_energy": float(np.sum(error * error)),
    }
    return keep.model_copy(update=update)


def _half(keep: Assignment, target: Target, tier: Tier, pricer: Pricer) -> list[Candidate]:
    error = pricer.error_of(lambda values: decoded_cast(values, tier, keep.dtype))
    if not math.isfinite(error):
        return []  # outside the range of this type
    fragment = encode_cast(target, np.zeros(keep.shape, np.float16), tier)
    update = {
        "tier": tier,
        "form": Form.CAST,
        "rounding": "cast",
        "n_bytes": fragment.n_bytes(),
        "error_energy": error,
    }
    return [Candidate(keep.model_copy(update=update), {})]


def _integer(
    kitchen: Kitchen,
    weight: Weight,
    keep: Assignment,
    target: Target,
    tier: Tier,
    pricer: Pricer,
) -> list[tuple[Candidate, Channels | None]]:
    found: list[tuple[Candidate, Channels | None]] = []
    if kitchen.setting.profile == "qdq" and len(weight.shape) < 2:
        return []  # explicit quantization leaves biases and scales of normalisations alone
    for axis in scale_axes(weight, tier):
        n_scales = 1 if axis is None else weight.shape[axis]
        if axis is not None and n_scales > _MAX_SCALE_SHARE * weight.n_values:
            continue
        for grid, form in offered_forms(kitchen.setting, weight, tier, axis):
            draft = keep.model_copy(
                update={
                    "tier": tier,
                    "grid": grid,
                    "axis": axis,
                    "half_scales": _wants_half(weight.shape, axis, kitchen.setting),
                    "form": form,
                    "encoding": kitchen.serving.stored_as,
                    "rounding": kitchen.rounding,
                }
            )
            if refusal(draft, weight, kitchen.serving.target, kitchen.opset) is not None:
                continue
            candidate, channels = _rounded(draft, target, pricer)
            if math.isfinite(candidate.assignment.error_energy):
                found.append((candidate, channels if kitchen.serving.rows_as_served else None))
            for group in _groups(kitchen, weight, axis):
                split = draft.model_copy(update={"group": group, "form": Form.CAST_MUL})
                candidate, _ = _rounded(split, target, pricer)
                if math.isfinite(candidate.assignment.error_energy):
                    found.append((candidate, None))
    return found


def _groups(kitchen: Kitchen, weight: Weight, axis: int | None) -> Iterator[int]:
    """Yield the group sizes of a weight: those requested for a matrix, and that of a grouped ConvTranspose."""
    serving = kitchen.serving
    if axis is None or serving.stored_as is not Encoding.PLANES or not serves(serving, Form.CAST_MUL):
        return
    if len(weight.shape) == 2:
        n = weight.shape[1 - axis]
        yield from (g for g in serving.groups if g < n and n % g == 0)
        return
    few = weight.groups * weight.shape[1] <= _MAX_SCALE_SHARE * weight.n_values
    if axis == 1 and few and 1 < weight.groups <= weight.shape[0] and weight.shape[0] % weight.groups == 0:
        yield weight.shape[0] // weight.groups


def _wants_half(shape: tuple[int, ...], axis: int | None, setting: Setting) -> bool:
    """Return whether float16 scales pay: each saves 2 bytes; all cost one Cast node, which TensorRT cannot read."""
    if axis is None or setting.serving.target is ServingTarget.TENSORRT or setting.profile == "qdq":
        return False
    return shape[axis] * 2 > _HALF_SCALE_OVERHEAD_BYTES


def _rounded(draft: Assignment, target: Target, pricer: Pricer) -> tuple[Candidate, Channels | None]:
    assert draft.grid is not None
    rounded = pricer.rounded(
        draft.tier.bits, draft.axis, draft.grid, half_scales=draft.half_scales, group=draft.group
    )
    # Bytes do not depend on the levels, so blank levels replace them.
    blank = np.broadcast_to(np.int8(0), draft.shape)
    scales = rounded.scales.reshape(broadcast_shape(draft.shape, draft.axis, draft.group))
    codes = Codes(blank, scales, draft.tier.bits, draft.grid, draft.axis, group=draft.group)
    fragment = encode_codes(target, codes, draft.form, draft.encoding)
    update = {"n_bytes": fragment.n_bytes(), "error_energy": float(np.sum(rounded.energies))}
    shared = {key: piece.n_bytes() for key, piece in fragment.shared.items()}
    channels = None
    if draft.axis is not None and not draft.group:
        channels = Channels(draft, rounded.energies, rounded.scales.dtype == np.float16)
    return Candidate(draft.model_copy(update=update), shared), channels


_HALF_SCALE_OVERHEAD_BYTES = 48
#: Width of the integers whose products saturate in pairs: 2 · 255 · 128 > 2^15, and 2 · 255 · 64 is not.
_WIDEST = 8


def _with_rows(
    plain: tuple[Candidate, ...], channels: list[Channels], target: Target
) -> tuple[Candidate, ...]:
    """Add row tiers that pay: neither candidates of one tier nor other row tiers dominate them."""
    sizes = [(c.assignment.n_bytes, c.assignment.error_energy) for c in plain]
    rows = [Candidate(a, shared) for a, shared in row_tiers(channels, target, sizes)]
    paying = [c for c in _undominated([*plain, *rows]) if c.assignment.rows]
    kept = [c for c in plain[:1] if c.assignment.form is Form.KEEP]
    others = [*plain[len(kept) :], *paying]
    others.sort(key=lambda c: (-c.assignment.n_bytes, c.assignment.error_energy))
    return (*kept, *others)


def _with_rounded(
    kitchen: Kitchen,
    weight: Weight,
    menu: tuple[Candidate, ...],
    target: Target,
    form: Form,
    narrower: Pricer | None,
) -> tuple[Candidate, ...]:
    """Add to every candidate whose codes can be read with rounded inputs the same codes in that form.

    Where 8 bits are offered 7 are too, for processors whose sums of products saturate (see `unsaturated`), although 8
    bits may take fewer bytes. `narrower` prices them; None if the weight may not have them.
    """
    found: list[Candidate] = []
    is_static = form is Form.STATIC
    offered_too = any(c.assignment.tier is Tier.INT7 and not c.assignment.rows for c in menu)
    if offered_too or kitchen.serving.target is ServingTarget.TENSORRT:
        narrower = None
    # The bytes of a range do not depend on its values.
    unknown = range_between(0.0, 1.0, kitchen.serving.kind_of_ranges)
    ranges = (unknown,) * (2 if convolved(weight, kitchen.setting.readers) else 1) if is_static else ()
    for a in (c.assignment for c in menu if c.assignment.tier.is_integer):
        can = (
            takes_static(kitchen.setting, weight, a.tier, a.axis)
            if is_static
            else takes_dynamic(kitchen.setting, weight, a.axis)
        )
        if a.group or not can:
            continue
        assert a.grid is not None
        shape = broadcast_shape(a.shape, a.axis)
        scales = np.zeros(shape, np.float16) if a.half_scales else np.zeros(shape, np.float32)
        bits = parts_of(a.rows, a.grid)[-1].bits if a.rows else a.tier.bits
        blank = Codes(np.broadcast_to(np.int8(0), a.shape), scales, bits, a.grid, a.axis, a.rows)
        fragment = encode_codes(replace(target, ranges=ranges), blank, form, a.encoding)
        update = {"form": form, "n_bytes": fragment.n_bytes(), "ranges": ranges}
        shared = {key: piece.n_bytes() for key, piece in fragment.shared.items()}
        found.append(Candidate(a.model_copy(update=update), shared))
        if a.tier is Tier.INT8 and not a.rows and narrower is not None:
            narrow = a.model_copy(update={"form": form, "ranges": ranges, "tier": Tier.INT7})
            found.append(_rounded(narrow, replace(target, ranges=ranges), narrower)[0])
    kept = menu[:1] if menu and menu[0].assignment.form is Form.KEEP else ()
    others = [*menu[len(kept) :], *found]
    others.sort(key=lambda c: (-c.assignment.n_bytes, c.assignment.error_energy))
    return (*kept, *others)


def with_ranges(menu: Menu, ranges: tuple[Range, ...]) -> Menu:
    """Return a menu whose candidates of the form `static` have these ranges; without ranges they are left out."""
    found = [
        replace(c, assignment=c.assignment.model_copy(update={"ranges": ranges}))
        if c.assignment.form is Form.STATIC
        else c
        for c in menu.candidates
        if c.assignment.form is not Form.STATIC or ranges
    ]
    return replace(menu, candidates=tuple(found))


def unsaturated(menu: Menu) -> Menu:
    """Return a menu without the candidates whose readers would add two products of 8 by 8 bits in 16 bits."""
    kept = (
        c for c in menu.candidates if c.assignment.form not in ROUNDED or max(c.assignment.widths) < _WIDEST
    )
    return replace(menu, candidates=tuple(kept))


def _undominated(found: list[Candidate]) -> tuple[Candidate, ...]:
    """Drop dominated candidates (more bytes and no less error than another); keep the stored form first if present."""
    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.assignment.n_bytes, c.assignment.error_energy)):
        if not kept or candidate.assignment.error_energy < kept[-1].assignment.error_energy:
            kept.append(candidate)
    kept.reverse()
    if found and found[0].assignment.form is Form.KEEP and kept[0].assignment.form is not Form.KEEP:
        kept.insert(0, found[0])
    return tuple(kept)

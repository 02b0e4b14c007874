"""The precisions a weight can get."""

from __future__ import annotations

from enum import StrEnum

from tqs_passes.errors import InputError


class Tier(StrEnum):
    """A precision, from the finest to the coarsest.

    The float tiers are storage types; an integer tier INTb stores b-bit codes and scales. Eq. (A.1.2) writes b_k for
    the bits of tier k; here they are the bits of one stored value, without scales.
    """

    FP64 = "FP64"
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"
    INT8 = "INT8"
    INT7 = "INT7"
    INT6 = "INT6"
    INT5 = "INT5"
    INT4 = "INT4"
    INT3 = "INT3"
    INT2 = "INT2"
    INT1 = "INT1"

    @property
    def bits(self) -> int:
        """Bits of one stored value."""
        return int(self.value.lstrip("FPBINT"))

    @property
    def is_integer(self) -> bool:
        """Whether the tier stores integer codes and scales."""
        return self.value.startswith("INT")


#: The tier that keeps a weight of this data type unchanged.
KEEP_TIER = {"float64": Tier.FP64, "float32": Tier.FP32, "float16": Tier.FP16, "bfloat16": Tier.BF16}

#: Tiers offered by default. BF16 is left out because FP16 has 64 times less error energy at equal bytes; it is
#: chosen only for its range, for a target, or on request.
DEFAULT_TIERS = (
    Tier.FP32,
    Tier.FP16,
    Tier.INT8,
    Tier.INT7,
    Tier.INT6,
    Tier.INT5,
    Tier.INT4,
    Tier.INT3,
    Tier.INT2,
    Tier.INT1,
)


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """Return the tiers named in a comma-separated list, finest first.

    Raises
    ------
    InputError
        A name is unknown or the list is empty.
    """
    names = [part.strip().upper() for part in text.split(",") if part.strip()]
    if not names:
        raise InputError("no tier given", todo=f"Choose from {', '.join(Tier)}")
    for name in names:
        if name not in Tier.__members__:
            raise InputError(f"unknown tier {name!r}", todo=f"Choose from {', '.join(Tier)}")
    return tuple(tier for tier in Tier if tier.value in names)


def offered(tiers: tuple[Tier, ...], dtype: str) -> tuple[Tier, ...]:
    """Return the tier that keeps `dtype` unchanged, then the tiers of `tiers` that store fewer bits than it."""
    keep = KEEP_TIER[dtype]
    return (keep, *(t for t in tiers if t.bits < keep.bits))

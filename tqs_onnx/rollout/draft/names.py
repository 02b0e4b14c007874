"""What the name of an input or output says: whether it is a recurrent state, a next value, a mask, a score."""

from __future__ import annotations

import re

#: Words that say on which side of a step a value is, and do not identify it.
_SIDES = frozenset(
    {
        *("in", "input", "inputs", "out", "output", "outputs", "next", "new", "old", "prev", "previous"),
        *("last", "past", "present", "pred", "prediction", "predictions", "forecast", "hat", "updated"),
        *("values", "initial", "init", "final", "t", "n", "0", "current", "args", "identity"),
    }
)
#: Words of values that a recurrent cell or a cache carries from call to call.
_STATES = frozenset(
    {
        *("state", "states", "hidden", "cell", "h", "c", "hx", "cx", "cache", "caches", "key", "value", "kv"),
        *("memory", "mem", "carry", "buffer", "rnn", "lstm", "gru"),
    }
)
#: Words of an output that is the next value of something.
_NEXT = frozenset(
    {
        *(
            "next",
            "forecast",
            "forecasts",
            "pred",
            "preds",
            "prediction",
            "predictions",
            "predicted",
            "future",
        ),
        *("hat", "yhat", "updated", "horizon"),
    }
)
#: Words of an output that is not the next value of an input, whatever its shape.
_JUDGES = frozenset(
    {
        *(
            "mask",
            "prob",
            "probs",
            "probability",
            "probabilities",
            "logit",
            "logits",
            "score",
            "scores",
            "label",
        ),
        *("labels", "class", "classes", "anomaly", "recon", "reconstruction", "reconstructed", "denoised"),
        *(
            "enhanced",
            "enh",
            "seg",
            "segmentation",
            "embedding",
            "embeddings",
            "attention",
            "error",
            "loss",
            "vad",
        ),
        *("sigma", "std", "variance", "logvar", "uncertainty"),
    }
)
#: Words of an input that stays what it is during a forecast, and of one that is given for every step.
_FIXED = frozenset(
    {
        *("static", "statics", "mask", "lat", "lats", "lon", "lons", "latitude", "longitude", "orography"),
        *("topography", "adj", "adjacency", "edge", "edges", "graph", "sr", "rate", "embedding", "id", "ids"),
        *("node", "lsm", "land", "soil", "const", "constants"),
    }
)
_GIVEN = frozenset(
    {
        *(
            "time",
            "hour",
            "day",
            "doy",
            "month",
            "year",
            "calendar",
            "forcing",
            "forcings",
            "future",
            "covariate",
        ),
        *(
            "covariates",
            "known",
            "toa",
            "solar",
            "exog",
            "exogenous",
            "weather",
            "price",
            "control",
            "action",
        ),
        *("actions", "timestamp", "timefeat", "step"),
    }
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def words(name: str) -> tuple[str, ...]:
    """Return the words and numbers of a name in lower case; torch's `hn` and `cn`, final states, become `h` and `c`."""
    found = [word.lower() for word in _WORD.findall(name)]
    return tuple(word[0] if word in ("hn", "cn") else word for word in found)


def stem(name: str) -> frozenset[str]:
    """Return the words that identify a value, without those that say on which side of a step it is."""
    return frozenset(words(name)) - _SIDES


def same_stem(output: str, target: str) -> bool:
    """Return whether two names are about one value: `h0` and `hn`, `state` and `stateN`, `input_2` and `output_2`."""
    a, b = stem(output), stem(target)
    return bool(a) and len(a & b) / len(a | b) > 0.5


def says_nothing(name: str) -> bool:
    """Return whether a name holds no word but sides and numbers, as `input`, `output` and `input_1` do."""
    return all(word.isdigit() for word in stem(name))


def is_state(name: str) -> bool:
    """Return whether a name is that of a value that a recurrent cell or a cache carries from call to call."""
    return bool(_STATES & set(words(name)))


def is_next(name: str) -> bool:
    """Return whether the name of an output says that it is a next value."""
    return bool(_NEXT & set(words(name))) and not is_judged(name)


def is_judged(name: str) -> bool:
    """Return whether the name of an output says that it is a mask, score, class or the like: no next value."""
    return bool(_JUDGES & set(words(name)))


def is_fixed(name: str) -> bool:
    """Return whether an input's name says that it does not change during a forecast."""
    return bool(_FIXED & set(words(name)))


def is_given(name: str) -> bool:
    """Return whether an input's name says that its values are given for every step."""
    return bool(_GIVEN & set(words(name)))

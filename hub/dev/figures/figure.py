"""A figure: one measured number, beside the same step with the bare library in the same run."""

import math
from collections.abc import Sequence

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What `./dev bench` prints as one JSON line."""

    name: str
    value: float
    unit: str
    limit: float
    ratio: float
    n: int


def figure(name: str, value: float, unit: str, *, limit: float, n: int) -> Figure:
    """Return the figure, rounded to what can be read; the ratio is value / limit, 0 without a limit."""
    ratio = value / limit if limit else 0.0
    return Figure(
        name=name,
        value=round(value, 3),
        unit=unit,
        limit=round(limit, 3),
        ratio=round(ratio, 3),
        n=n,
    )


def percentile(samples: Sequence[float], q: float) -> float:
    """Return the smallest sample that at least the fraction `q` of all samples does not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]

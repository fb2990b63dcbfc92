"""What is made of samples: median and quartiles, ratios of turns, and how a cost grows."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FLAT = 0.12
"""An exponent this small is a constant cost."""
STEP = 0.2
"""How far an exponent may be from 1 to be called linear."""


class Spread(NamedTuple):
    """First quartile, median, third quartile."""

    q1: float
    median: float
    q3: float


def spread(samples: Sequence[float]) -> Spread:
    q1, median, q3 = (float(value) for value in np.percentile(samples, (25, 50, 75)))
    return Spread(q1, median, q3)


class Ratio(NamedTuple):
    """Theirs divided by ours: the median over turns, and the lowest and highest turn."""

    low: float
    median: float
    high: float


def ratio(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Ratio | None:
    """Turn by turn, so that a machine that becomes slower or faster meanwhile changes nothing; without turns lost in noise."""
    turns = [statistics.median(t) / statistics.median(o) for t, o in zip(theirs, ours, strict=False)
             if t and o and statistics.median(t) > 0 and statistics.median(o) > 0]
    return Ratio(min(turns), statistics.median(turns), max(turns)) if turns else None


class Growth(NamedTuple):
    """`exponent` of cost ~ size**exponent, and the word for it."""

    exponent: float
    word: str


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """How a cost grows with a size: constant, logarithmic, linear, or like a power."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.maximum(np.asarray(costs, float), 1e-9))
    exponent = float(np.polyfit(x, y, 1)[0])
    if abs(exponent) < FLAT or max(costs) < 1.5 * min(costs):
        return Growth(exponent, "constant")
    # A cost with a fixed part looks like a small power; if all of it is explained by a + b * size, it is linear.
    fits: dict[str, Any] = {"logarithmic": _misfit(np.log(sizes), costs), "linear": _misfit(np.asarray(sizes, float), costs)}
    best = min(fits, key=lambda word: fits[word])
    if exponent < 0 or (abs(exponent - 1) > STEP and fits[best] > 0.15):
        return Growth(exponent, f"size^{exponent:.1f}")
    return Growth(exponent, best if exponent < 1 + STEP else f"size^{exponent:.1f}")


def _misfit(x: Any, costs: Sequence[float]) -> float:
    """How far the best a + b * x is off, as a part of each cost; costs count alike, small or large."""
    y = np.asarray(costs, float)
    weights = 1 / y
    a, b = np.polyfit(x, y, 1, w=weights)
    return math.sqrt(float(np.mean(((a * x + b - y) * weights) ** 2)))

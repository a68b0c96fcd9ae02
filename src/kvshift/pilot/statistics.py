"""Intervals over a handful of paired numbers. Everything here is plain floats in, `Estimate` out.

**Each interval uses only its own spread.** With three seeds a Student interval has two degrees of freedom and
is wide (±2.48 standard deviations), and pooling the variance of the differences over sizes would narrow it to
±1.41. It would also be wrong: small models spread more than large ones, and at the size that spreads three
times as much as the others a pooled "95%" interval covers about 87% (tests/pilot/test_analyse_statistics.py
measures it). A Welch–Satterthwaite combination copes with that, but supposes that sizes are independent, and
they are not: a seed means the same data order, and the same draw of the first taps, at every size. So the
overall gain is averaged over sizes *within* each seed, and the interval taken over seeds: exact for a normal
spread whatever the variances and correlations between sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

from kvshift.pilot.results import Estimate

CONFIDENCE = 0.95


@lru_cache(maxsize=256)
def t_quantile(degrees: int) -> float:
    """Half-width of a two-sided 95% Student interval, in standard errors."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees))


def mean_interval(values: Iterable[float]) -> Estimate | None:
    """Mean and 95% Student interval; no interval for one value, None for none.

    Values that are all the same give an interval of no width, never a failure.
    """
    numbers = np.fromiter(values, dtype=np.float64)
    n = len(numbers)
    if n == 0:
        return None
    mean = float(numbers.mean())
    if n == 1:
        return Estimate(value=mean, n=1)
    spread = float(numbers.std(ddof=1)) if np.ptp(numbers) > 0 else 0.0
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=n)


def share_interval(values: Iterable[float]) -> Estimate | None:
    """As `mean_interval`, clipped to [-1, 1]: for shares saved, where more than everything means nothing."""
    numbers = [clip(value) for value in values]
    return _map(mean_interval(numbers), clip)


def ratio_interval(ratios: Iterable[float]) -> Estimate | None:
    """Geometric mean and interval, taken over logarithms, so that swapping the arms gives exactly 1/ratio."""
    return _map(mean_interval([math.log(ratio) for ratio in ratios]), math.exp)


def censored_interval(values: Sequence[float], *, below: int = 0, above: int = 0) -> Estimate | None:
    """A mean of which some values are only bounds; the interval stays open on that side.

    Args:
        values: every value, bounds included.
        below: how many of them are upper bounds (the truth may lie below): `low` becomes None.
        above: how many of them are lower bounds (the truth may lie above): `high` becomes None.
    """
    estimate = share_interval(values)
    if estimate is None:
        return None
    return estimate.model_copy(
        update=({"low": None} if below else {}) | ({"high": None} if above else {}),
    )


def clip(share: float) -> float:
    """A share saved, held in [-1, 1]."""
    return min(1.0, max(-1.0, share))


def _map(estimate: Estimate | None, function: Callable[[float], float]) -> Estimate | None:
    if estimate is None:
        return None
    low, high = (None if end is None else function(end) for end in (estimate.low, estimate.high))
    return Estimate(value=function(estimate.value), low=low, high=high, n=estimate.n)

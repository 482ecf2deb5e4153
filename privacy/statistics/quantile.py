"""Private quantiles by the exponential mechanism on a public grid (McSherry and Talwar 2007; Smith 2011).

A grid, and not the real line: between equal values the line has gaps of length zero, so that a mechanism on it never
finds a point mass. The choice is exact: bits decide between floating-point bounds, and where they fall between two of
them it is made again with more digits.
"""

from __future__ import annotations

import decimal
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee, hardness
from privacy.arrays import as_floats
from privacy.noise import exact
from privacy.noise.randomness import Randomness, SecureRandomness
from privacy.statistics.mean import Neighbouring

if TYPE_CHECKING:
    from privacy.budget import Releases

PARTS = 2**16
"""The quantile is taken as a multiple of 1 / PARTS."""

_MOST_POINTS = 2**48

log = logging.getLogger(__name__)


class Quantile(NamedTuple):
    """A private quantile and what it cost.

    Attributes:
      value: a point of the grid.
      rank_slack: with a probability of 95 % so many records, at most, lie between the value and the quantile.
      guarantee: see `privacy.accounting.guarantee`.
    """

    value: float
    rank_slack: float
    guarantee: Guarantee


def dp_quantile(
    values: Any,
    quantile: float,
    lower: float,
    upper: float,
    resolution: float,
    epsilon: float,
    neighbouring: Neighbouring = "add-remove",
    randomness: Randomness | None = None,
    ledger: Releases | None = None,
) -> Quantile:
    """The private quantile of numbers [n], among lower, lower + resolution, ... up to `upper`.

    A point's score is how far the records below and above it are from the shares asked for; under add-remove it moves
    with one record by max(quantile, 1 - quantile) at most.

    Args:
      values: numbers; each is clamped and rounded to the grid. NaN counts as absent (the log tells the operator).
      quantile: in [0, 1]; 0.5 is the median.
      lower: public.
      upper: public, above `lower`.
      resolution: of the grid, public, up to `upper - lower`; at most 2^48 points.
      epsilon: pure ε, above 0.
      neighbouring: "add-remove" (the number of records is private) or "swap".
      randomness: the operating system's if left out.
      ledger: of a `privacy.budget.Budget`; the release is written there before its noise is drawn.

    Raises:
      ValueError: an argument is out of range, in one line.
    """
    share = checks.between("quantile", quantile, -math.inf, math.inf, "0.5 is the median")
    if not 0 <= share <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile!r}: 0.5 is the median")
    lower, upper = checks.bounds(lower, upper)
    resolution = checks.positive("resolution", resolution, "give the public grid's step")
    epsilon = checks.positive("epsilon", epsilon, "give the cost of this quantile")
    if neighbouring not in ("add-remove", "swap"):
        raise ValueError(f"neighbouring {neighbouring!r} is unknown: use add-remove or swap")
    points = (upper - lower) / resolution + 1
    if not 2 <= points <= _MOST_POINTS:
        raise ValueError(f"resolution {resolution:g} makes {points:.3g} points of [{lower:g}, {upper:g}]: 2 to 2^48")
    count = math.floor(points * (1 + 1e-12))
    source = SecureRandomness() if randomness is None else randomness

    relation: Any = "add-or-remove-one" if neighbouring == "add-remove" else "replace-one"
    guarantee = Guarantee(
        f"{share:g}-quantile on {count} points of [{lower:g}, {upper:g}] by the exponential mechanism",
        (costs.Pure(epsilon),),
        relation,
        0.0,
        hardness(source),
    )
    places = _to_grid(values, lower, resolution, count)
    if ledger is not None:
        ledger.record(guarantee)
    target = round(share * PARTS)
    sensitivity = PARTS if neighbouring == "swap" else max(target, PARTS - target)
    starts, scores = _scores(places, target, count)
    run = _choose(
        source, np.diff(starts, append=count), scores - scores.min(), math.nextafter(epsilon / (2 * sensitivity), 0)
    )
    end = starts[run + 1] if run + 1 < len(starts) else count
    place = int(starts[run]) + int(exact.uniform(source, int(end - starts[run]), 1)[0])
    return Quantile(min(lower + place * resolution, upper), rank_slack(share, count, epsilon, neighbouring), guarantee)


def rank_slack(
    quantile: float, points: int, epsilon: float, neighbouring: Neighbouring = "add-remove", failure: float = 0.05
) -> float:
    """Most records between the private quantile and the true one, but with probability `failure`.

    2 max(q, 1 - q) log(points / failure) / ε, by the exponential mechanism's tail bound. A quantile nearer to 0 or 1
    than this share of the records can land anywhere beyond the data.
    """
    sensitivity = 1.0 if neighbouring == "swap" else max(quantile, 1 - quantile)
    return 2 * sensitivity * math.log(points / failure) / epsilon


def _to_grid(values: Any, lower: float, resolution: float, points: int) -> npt.NDArray[np.int64]:
    array = as_floats("values", values)
    if array.ndim != 1:
        raise ValueError(f"values have shape {list(array.shape)}: numbers [n] are needed")
    absent = np.isnan(array)
    if absent.any():
        log.warning("%d of %d values are NaN: left out (for the operator's eyes only)", absent.sum(), len(array))
        array = array[~absent]
    with np.errstate(over="ignore"):
        return np.rint(np.clip((array - lower) / resolution, 0, points - 1)).astype(np.int64)


def _scores(
    places: npt.NDArray[np.int64], target: int, points: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of grid points with one score: where each begins, and that score. int64 [runs] each.

    Every place of data is a run of one point; so is every gap before, between and behind them.
    """
    where, counts = np.unique(places, return_counts=True)
    starts = np.unique(np.concatenate([[0], where, where + 1]))
    starts = starts[starts < points]
    total = np.concatenate([[0], np.cumsum(counts)])
    below = total[np.searchsorted(where, starts, side="left")]
    not_above = total[np.searchsorted(where, starts, side="right")]
    above = total[-1] - not_above
    return starts, np.abs((PARTS - target) * below - target * above)


def _choose(source: Randomness, sizes: npt.NDArray[np.int64], scores: npt.NDArray[np.int64], rate: float) -> int:
    """The index i with probability proportional to sizes[i] exp(-rate scores[i]), exactly; the least score is 0."""
    bits = 62
    drawn = int(exact.uniform(source, 2**bits, 1)[0])
    exponents = rate * scores
    ends = np.cumsum(sizes * np.exp(-exponents))
    # Of a weight that is not 0 the exponent is below 800 and 3 roundings off; sums add one for each.
    error = (3 * 800 + 8 + len(sizes)) * 2.0**-52
    low = np.searchsorted(ends * (1 + error), drawn / 2**bits * ends[-1] * (1 - error), side="right")
    high = np.searchsorted(ends * (1 - error), (drawn + 1) / 2**bits * ends[-1] * (1 + error), side="right")
    if low == high:
        return int(low)
    digits = 40
    while True:
        found = _choose_with_digits(drawn, bits, sizes, scores, rate, digits)
        if found is not None:
            return found
        digits *= 2
        drawn = (drawn << 62) + int(exact.uniform(source, 2**62, 1)[0])
        bits += 62


def _choose_with_digits(
    drawn: int, bits: int, sizes: npt.NDArray[np.int64], scores: npt.NDArray[np.int64], rate: float, digits: int
) -> int | None:
    """As `_choose`, for the number (drawn + [0, 1]) / 2^bits; None if it, or the digits, cannot tell."""
    with decimal.localcontext(decimal.Context(prec=digits, Emin=-(10**9), Emax=10**9)):
        exact_rate = decimal.Decimal(rate)
        ends, total = [], decimal.Decimal(0)
        for size, score in zip(sizes.tolist(), scores.tolist(), strict=True):
            total += size * (-exact_rate * score).exp()
            ends.append(total)
        error = decimal.Decimal(10) ** (8 - digits) * len(ends) * (1 + exact_rate * int(scores.max()))
        low = decimal.Decimal(drawn) / decimal.Decimal(2**bits) * total * (1 - error)
        high = decimal.Decimal(drawn + 1) / decimal.Decimal(2**bits) * total * (1 + error)
        for index, end in enumerate(ends[:-1]):
            if high < end * (1 - error):
                return index
            if low <= end * (1 + error):
                return None
    return len(ends) - 1

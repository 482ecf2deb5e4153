"""Releases private quantiles by the exponential mechanism on a public grid (McSherry and Talwar 2007; Smith 2011).

The mechanism chooses among grid points and not on the real line. There, gaps between equal values have length zero, so
a value that many records share would never be found. The choice has exactly the mechanism's probabilities: random bits
are compared with floating-point bounds, and where these leave the choice open, with bounds of more digits.

Of n records, let `below` be less than a point and `above` be greater. The point's score is

    max(below - q n, above - (1 - q) n, 0),

which is the number of records by which the point misses the q-quantile. The score is 0 exactly if at most a share q
of the records lies below the point and at most a share 1 - q above it. So a value is not penalised because many
records share it. Some grid point always has score 0.

Sensitivity. One more record raises n by 1, and at most one of `below` and `above` by 1. So below - q n moves by 1 - q
or -q, and above - (1 - q) n by q or -(1 - q): under add-or-remove-one each moves by at most max(q, 1 - q). Replacing
one record leaves n as it is and moves `below` and `above` by at most 1 each, so under replace-one each term moves by
at most 1. The maximum of the terms moves by no more than the largest move of a term.
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
from privacy.accounting.guarantee import Guarantee, describe_noise
from privacy.arrays import as_floats
from privacy.noise import exact
from privacy.noise.randomness import Randomness, SecureRandomness
from privacy.sampling import Relation

if TYPE_CHECKING:
    from privacy.budget import Releases

PARTS = 2**16
"""Resolution of q: each q is rounded to a multiple of 1 / PARTS."""

_MAX_POINTS = 2**48

log = logging.getLogger(__name__)


class Quantile(NamedTuple):
    """Holds a private quantile and its guarantee.

    Attributes:
      value: a point of the grid.
      rank_slack: with probability 95 %, at most this many records lie strictly between the value and the true quantile,
        both on the grid; see the function `rank_slack`.
      guarantee: ε with unit, relation, sampler, mechanism and noise.
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
    relation: Relation = "add-or-remove-one",
    randomness: Randomness | None = None,
    ledger: Releases | None = None,
) -> Quantile:
    """Releases a private quantile of numbers [n], chosen among lower, lower + resolution, ... up to `upper`.

    The release is ε-DP under `relation`. It is as accurate on values that many records share (zeros, caps, ratings,
    counts) as on values that differ. The module's docstring describes the score and proves its sensitivity.

    Args:
      values: numbers [n]. Each is clamped and rounded to the grid. NaN counts as absent, and the log warns the
        operator.
      quantile: in [0, 1], rounded to a multiple of 2^-16; 0.5 is the median.
      lower: public lower bound of the grid.
      upper: public upper bound of the grid, above `lower`.
      resolution: public step of the grid, above 0 and at most `upper - lower`; the grid has at most 2^48 points.
      epsilon: pure ε, above 0.
      relation: "add-or-remove-one" (the number of records is private) or "replace-one".
      randomness: source of the random choice; None: the operating system's.
      ledger: ledger of a `privacy.Budget`; the release is recorded there before the value is drawn.

    Raises:
      ValueError: an argument is out of range, or the budget does not allow the release.
    """
    share = checks.between("quantile", quantile, -math.inf, math.inf, "0.5 is the median")
    if not 0 <= share <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile!r}: 0.5 is the median")
    lower, upper = checks.bounds(lower, upper)
    resolution = checks.positive("resolution", resolution, "give the step of the public grid")
    epsilon = checks.positive("epsilon", epsilon, "give the privacy cost of this quantile")
    if relation not in ("add-or-remove-one", "replace-one"):
        raise ValueError(f"relation {relation!r} is unknown: use add-or-remove-one or replace-one")
    points = (upper - lower) / resolution + 1
    if not 2 <= points <= _MAX_POINTS:
        raise ValueError(
            f"resolution {resolution:g} makes {points:.3g} points of [{lower:g}, {upper:g}]: 2 to 2^48 are needed"
        )
    count = math.floor(points * (1 + 1e-12))
    source = SecureRandomness() if randomness is None else randomness

    guarantee = Guarantee(
        f"{share:g}-quantile on {count} points of [{lower:g}, {upper:g}] by the exponential mechanism",
        (costs.Pure(epsilon),),
        relation,
        0.0,
        describe_noise(source),
    )
    places = _to_grid(values, lower, resolution, count)
    if ledger is not None:
        ledger.record(guarantee)
    target = round(share * PARTS)
    sensitivity = PARTS if relation == "replace-one" else max(target, PARTS - target)
    starts, scores = _compute_scores(places, target, count)
    run = _choose(source, np.diff(starts, append=count), scores, math.nextafter(epsilon / (2 * sensitivity), 0))
    end = starts[run + 1] if run + 1 < len(starts) else count
    place = int(starts[run]) + int(exact.uniform(source, int(end - starts[run]), 1)[0])
    slack = rank_slack(target / PARTS, count, epsilon, relation)
    return Quantile(min(lower + place * resolution, upper), slack, guarantee)


def rank_slack(
    quantile: float, points: int, epsilon: float, relation: Relation = "add-or-remove-one", failure: float = 0.05
) -> float:
    """Returns how many records may lie strictly between the private quantile and the true one.

    The slack is the tail bound of the exponential mechanism for a least score of 0: 2 Δ log(points / failure) / ε,
    where Δ is the score's sensitivity. Except with probability `failure`, at most quantile * n + slack records lie
    below the value and at most (1 - quantile) * n + slack above it, all rounded to the grid. If quantile * n or
    (1 - quantile) * n is below the slack, the value may lie anywhere beyond the data on that side.

    Args:
      quantile: in [0, 1].
      points: number of grid points.
      epsilon: pure ε, above 0.
      relation: "add-or-remove-one" or "replace-one".
      failure: probability that more records lie between, in (0, 1).
    """
    sensitivity = 1.0 if relation == "replace-one" else max(quantile, 1 - quantile)
    return 2 * sensitivity * math.log(points / failure) / epsilon


def _to_grid(values: Any, lower: float, resolution: float, points: int) -> npt.NDArray[np.int64]:
    """Returns the index of the grid point nearest to each value, int64; NaN is left out."""
    array = as_floats("values", values)
    if array.ndim != 1:
        raise ValueError(f"values have shape {list(array.shape)}: numbers [n] are needed")
    absent = np.isnan(array)
    if absent.any():
        log.warning("%d of %d values are NaN: left out (for the operator only)", absent.sum(), len(array))
        array = array[~absent]
    with np.errstate(over="ignore"):
        return np.rint(np.clip((array - lower) / resolution, 0, points - 1)).astype(np.int64)


def _compute_scores(
    places: npt.NDArray[np.int64], target: int, points: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns runs of grid points of equal score: the start of each, and its score times `PARTS`, int64 [runs] each.

    Each point that holds data is a run of its own, and so is each gap before, between and after such points.
    """
    where, counts = np.unique(places, return_counts=True)
    starts = np.unique(np.concatenate([[0], where, where + 1]))
    starts = starts[starts < points]
    total = np.concatenate([[0], np.cumsum(counts)])
    below = total[np.searchsorted(where, starts, side="left")]
    not_above = total[np.searchsorted(where, starts, side="right")]
    count = total[-1]
    too_high = PARTS * below - target * count
    too_low = PARTS * (count - not_above) - (PARTS - target) * count
    return starts, np.maximum(np.maximum(too_high, too_low), 0)


def _choose(source: Randomness, sizes: npt.NDArray[np.int64], scores: npt.NDArray[np.int64], rate: float) -> int:
    """Draws i with probability exactly proportional to sizes[i] exp(-rate scores[i]); the least score must be 0."""
    bits = 62
    drawn = int(exact.uniform(source, 2**bits, 1)[0])
    with np.errstate(over="ignore"):  # a rate near the largest float: all weights but those of score 0 are 0
        ends = np.cumsum(sizes * np.exp(-rate * scores))
    # A weight that does not underflow is exp(-x) with x < 800, where x is off by at most 3 roundings. Each partial sum
    # adds one more.
    error = (3 * 800 + 8 + len(sizes)) * 2.0**-52
    low = np.searchsorted(ends * (1 + error), drawn / 2**bits * ends[-1] * (1 - error), side="right")
    high = np.searchsorted(ends * (1 - error), (drawn + 1) / 2**bits * ends[-1] * (1 + error), side="right")
    # If `drawn` is 0, the choice may be an index before the first positive bound, whose weight underflowed to 0.
    if low == high and drawn > 0:
        return int(low)
    digits = 40 + math.ceil(math.log10(1 + rate) + math.log10(1 + float(scores.max())))
    while True:
        index = _choose_with_digits(drawn, bits, sizes, scores, rate, digits)
        if index is not None:
            return index
        digits += 20  # 62 bits are 19 digits
        drawn = (drawn << 62) + int(exact.uniform(source, 2**62, 1)[0])
        bits += 62


def _choose_with_digits(
    drawn: int, bits: int, sizes: npt.NDArray[np.int64], scores: npt.NDArray[np.int64], rate: float, digits: int
) -> int | None:
    """Returns the index that a uniform number between drawn / 2^bits and (drawn + 1) / 2^bits chooses.

    Returns None if `bits` or `digits` are too few to decide.
    """
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

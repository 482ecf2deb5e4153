"""The mean of bounded numbers where the number of people is itself private: the add-remove model (Kulesza, Suresh and
Wang 2024, arXiv:2312.06658).

The pair (Σ (x - lower), Σ (upper - x)) is all that is released: one record moves it by two non-negative numbers that
add up to the width, so noise for a sensitivity of one width covers both; the mean and the count follow from it. Sums
are of whole grid steps and their noise is whole too; the result is divided once, last.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import operator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee, hardness
from privacy.arrays import as_floats, shortened
from privacy.noise import exact
from privacy.noise.exact import EXPONENT_BITS
from privacy.noise.randomness import Randomness, SecureRandomness
from privacy.sampling import Relation

if TYPE_CHECKING:
    from privacy.budget import Releases

Mechanism = Literal["hourglass", "transformed-laplace", "midpoint", "sum-count", "gaussian"]

STEPS = 2**32
"""Grid steps from lower to upper: rounding moves a mean by at most a 2^33rd of the width."""

_ROWS = 4096
_LEAST_EPSILON, _MOST_EPSILON = 1e-6, 50.0

log = logging.getLogger(__name__)


class Mean(NamedTuple):
    """A private mean and what it cost.

    Attributes:
      value: in [lower, upper]: a number, or float64 [d]. The middle where the noise left no record.
      records: how many, private too (of several coordinates the mean); with "replace-one" the true number, which is
        public there.
      guarantee: see `privacy.accounting.guarantee`.
    """

    value: Any
    records: float
    guarantee: Guarantee


@dataclasses.dataclass(frozen=True)
class BoundedMean:
    """A mean as sums that can be added up anywhere: in one process, in a stream, over many devices.

    `sums` of parts of the data add up to the sums of all of it; `release` adds the noise, once, and divides.

    Attributes:
      lower: smallest value that counts; smaller ones are raised to it.
      upper: largest value that counts, above `lower`.
      epsilon: ε, above 0. With "gaussian" at `delta`.
      mechanism: "hourglass" has the least worst-case error for pure ε, whatever ε is; "transformed-laplace" nearly the
        same up to ε = 1; "midpoint" is what other libraries do (twice the error and more) and "sum-count" the naive
        way; "gaussian" is for an account in (ε, δ), and wins where many releases add up.
      relation: "add-or-remove-one": neighbours have one record more or less, and the count is private. "replace-one":
        one record is another, and the number of records is public; only the sum gets noise.
      delta: of "gaussian", in (0, 1); 0 for the others.
      coordinates: of a record, each in [lower, upper]. ε is for all of them together.
    """

    lower: float
    upper: float
    epsilon: float
    mechanism: Mechanism = "hourglass"
    relation: Relation = "add-or-remove-one"
    delta: float = 0.0
    coordinates: int = 1

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        for name, bound in zip(("lower", "upper"), checks.bounds(self.lower, self.upper), strict=True):
            object.__setattr__(self, name, bound)
        if math.isinf(self.upper - self.lower):
            raise ValueError(f"lower {self.lower:g} is not below upper {self.upper:g}: exchange them")
        checks.positive("epsilon", self.epsilon, "give the cost of this mean")
        if self.mechanism not in get_args(Mechanism):
            raise ValueError(f"mechanism {self.mechanism!r} is unknown: use one of {', '.join(get_args(Mechanism))}")
        if self.relation not in ("add-or-remove-one", "replace-one"):
            raise ValueError(f"relation {self.relation!r} is unknown: use add-or-remove-one or replace-one")
        if self.relation == "replace-one" and self.mechanism in ("midpoint", "sum-count"):
            raise ValueError(
                f"mechanism {self.mechanism!r} spends half of epsilon on a count that is public under replace-one: "
                "use hourglass, transformed-laplace or gaussian"
            )
        if self.mechanism == "gaussian":
            checks.between("delta", self.delta, 0, 1, "gaussian noise needs one, for instance 1e-6")
        elif checks.non_negative("delta", self.delta, "leave it out") != 0:
            raise ValueError(f"delta is {self.delta:g} and {self.mechanism} is pure: leave it out, or use gaussian")
        checks.whole("coordinates", self.coordinates, 1, "count those of a record")
        if not _LEAST_EPSILON <= self._each <= _MOST_EPSILON:
            raise ValueError(
                f"epsilon {self.epsilon:g} is {self._each:g} a coordinate: take from {_LEAST_EPSILON:g} (below, noise "
                f"would leave the grid) to {_MOST_EPSILON:g} (above, nobody is protected)"
            )
        if self.mechanism != "hourglass" and self._scale > exact.LARGEST_SCALE:
            raise ValueError(
                f"epsilon {self.epsilon:g} at delta {self.delta:g} asks for more noise than the grid holds"
            )

    def sums(self, values: Any) -> npt.NDArray[Any]:
        """(Σ (x - lower), Σ (upper - x)) in grid steps, of numbers [n] or [n, coordinates].

        Python's whole numbers [2, coordinates], which do not overflow when sums of parts are added up. Values outside
        the bounds are clamped. A record with NaN counts as absent (under swap, where the number of records is public,
        NaN counts as the middle), and the log tells the operator: to refuse the data would tell that it is there.

        Raises:
          ValueError: not such an array, or over 2^30 records.
        """
        array = as_floats("values", values)
        if array.ndim == 1 and (self.coordinates == 1 or not array.size):
            array = array.reshape(-1, self.coordinates)
        if array.ndim != 2 or array.shape[1] != self.coordinates:
            shape = "[n]" if self.coordinates == 1 else f"[n, {self.coordinates}]"
            raise ValueError(f"values have shape {list(array.shape)}: {shape} is needed")
        if len(array) > 2**30:
            raise ValueError(f"{len(array)} records are more than 2^30: add up the sums of parts")
        absent = np.isnan(array).any(axis=1)
        if absent.any():
            log.warning("%d of %d records hold NaN (for the operator's eyes only)", absent.sum(), len(array))
            if self.relation == "replace-one":
                array[np.isnan(array)] = self.lower / 2 + self.upper / 2
            else:
                array = array[~absent]
        # Clamped before anything is subtracted, scaled last: no bound and no value overflows.
        share = (np.clip(array, self.lower, self.upper) - self.lower) / (self.upper - self.lower)
        steps = np.rint(np.clip(share, 0, 1) * STEPS).astype(np.int64)
        above = steps.sum(axis=0).astype(object)
        return np.stack([above, len(array) * STEPS - above])

    def release(self, sums: Any, randomness: Randomness | None = None, ledger: Releases | None = None) -> Mean:
        """The private mean. Each call with the same sums is a release of its own and costs ε again.

        Args:
          sums: whole numbers [2, coordinates]; they may have been added up in Python's integers.
          randomness: of the noise; the operating system's if left out.
          ledger: of a `privacy.budget.Budget`; the release is written there before its noise is drawn.

        Raises:
          ValueError: `sums` are of another number of coordinates, or the budget does not allow the release.
        """
        source = SecureRandomness() if randomness is None else randomness
        array = np.asarray(sums, object)
        if array.shape != (2, self.coordinates):
            raise ValueError(f"sums have shape {list(array.shape)}: [2, {self.coordinates}] is needed, as of sums()")
        try:
            above, below = ([operator.index(number) for number in row] for row in array)
        except TypeError:
            raise ValueError("sums are not whole numbers: give those of sums(), added up") from None
        if min(*above, *below) < 0:
            raise ValueError("sums are below 0: they were added up in numbers too small for them, or are others'")
        guarantee = self._guarantee(source)
        if ledger is not None:
            ledger.record(guarantee)
        shares, counts = zip(*self._released(above, below, source), strict=True)
        value = self.lower + np.asarray(shares) * (self.upper - self.lower)
        value = np.clip(value, self.lower, self.upper)
        scalar = value.item() if self.coordinates == 1 else value
        return Mean(scalar, float(np.mean(counts)), guarantee)

    @property
    def _each(self) -> float:
        """ε of one coordinate's release, where each is one of its own."""
        return self.epsilon / self.coordinates

    @property
    def _scale(self) -> int:
        """Scale or standard deviation of the noise, in grid steps, rounded up. Not that of "hourglass"."""
        match self.mechanism:
            case "gaussian":
                # (x, 1 - x) has an L2 norm of at most 1, a swap moves x by at most 1; d coordinates: the root of d.
                scale = STEPS * math.sqrt(self.coordinates) / _gaussian_multiplier(self.epsilon, self.delta)
            case "midpoint" | "sum-count":
                scale = 2 * STEPS / self._each
            case _:
                scale = STEPS / self._each
        return math.ceil(scale) + 1  # the division may have rounded down

    def _draw(self, source: Randomness, size: int) -> list[int]:
        """Noise of the mechanism's own kind for single sums."""
        if self.mechanism == "gaussian":
            return exact.gaussian(source, self._scale, size).tolist()
        if self.mechanism == "hourglass":
            return exact.staircase(source, self._fixed_epsilon, STEPS, self._core, size).tolist()
        return exact.laplace(source, self._scale, size).tolist()

    def _released(self, above: list[int], below: list[int], source: Randomness) -> list[tuple[float, float]]:
        """Of each pair of sums the mean, as a share of the width, and the count; noise afresh for each."""
        if self.relation == "replace-one":
            return self._release_swap(above, below, source)
        return self._release_add_remove(above, below, source)

    def _release_add_remove(self, above: list[int], below: list[int], source: Randomness) -> list[tuple[float, float]]:
        if self.mechanism == "hourglass":
            drawn = exact.hourglass(source, self._fixed_epsilon, STEPS, self._core, len(above)).tolist()
        else:
            drawn = np.reshape(self._draw(source, 2 * len(above)), (2, -1)).tolist()
        found = []
        for first, second, noise_1, noise_2 in zip(above, below, *drawn, strict=True):
            if self.mechanism in ("midpoint", "sum-count"):
                found.append(self._of_sum_and_count(first, first + second, noise_1, noise_2))
                continue
            first, second = max(first + noise_1, 0), max(second + noise_2, 0)
            found.append((first / (first + second) if first + second else 0.5, (first + second) / STEPS))
        return found

    def _of_sum_and_count(self, total: int, count: int, noise_1: int, noise_2: int) -> tuple[float, float]:
        """From a sum and a count (in grid steps) that get half of ε each."""
        noised = max(count + noise_2, STEPS)
        if self.mechanism == "sum-count":
            return min(max((total + noise_1) / noised, 0.0), 1.0), noised / STEPS
        # Twice the sum of x - 1/2, whose sensitivity is one width, as is that of the noise on it.
        centred = 2 * total - count + noise_1
        return min(max(0.5 + centred / (2 * noised), 0.0), 1.0), noised / STEPS

    def _release_swap(self, above: list[int], below: list[int], source: Randomness) -> list[tuple[float, float]]:
        found = []
        for first, second, drawn in zip(above, below, self._draw(source, len(above)), strict=True):
            width = first + second  # the public number of records, in grid steps
            share = (first + drawn) / width if width else 0.5
            found.append((min(max(share, 0.0), 1.0), width / STEPS))
        return found

    @property
    def _fixed_epsilon(self) -> int:
        return math.floor(self._each * 2**EXPONENT_BITS) - 1

    @property
    def _core(self) -> int:
        return round(hourglass_core(self._each) * STEPS)

    def _guarantee(self, source: Randomness) -> Guarantee:
        cost: costs.Cost = costs.Pure(self.epsilon)
        if self.mechanism == "gaussian":
            cost = costs.Gaussian(self._scale / (STEPS * math.sqrt(self.coordinates)))
        of = "" if self.coordinates == 1 else f" of {self.coordinates} coordinates"
        words = f"mean{of} in [{self.lower:g}, {self.upper:g}] by {self.mechanism}"
        return Guarantee(words, (cost,), self.relation, self.delta, hardness(source))


def dp_mean(
    values: Any,
    lower: float,
    upper: float,
    epsilon: float,
    mechanism: Mechanism = "hourglass",
    relation: Relation = "add-or-remove-one",
    delta: float = 0.0,
    randomness: Randomness | None = None,
    ledger: Releases | None = None,
) -> Mean:
    """The private mean of numbers [n], or of records [n, d] by coordinate, each in [lower, upper].

    See `BoundedMean` and its `release` for the arguments, for values outside, NaN, and data that stands in many places;
    `mean_in_ball` for vectors of bounded length.

    Raises:
      ValueError: an argument is out of range, in one line.
    """
    array = as_floats("values", values)
    coordinates = array.shape[1] if array.ndim == 2 else 1
    mean = BoundedMean(lower, upper, epsilon, mechanism, relation, delta, coordinates)
    found = mean.release(mean.sums(array), randomness, ledger)
    return found if array.ndim != 2 else found._replace(value=np.reshape(found.value, coordinates))


def mean_in_ball(
    vectors: Any,
    radius: float,
    epsilon: float,
    delta: float,
    randomness: Randomness | None = None,
    ledger: Releases | None = None,
) -> Mean:
    """The private mean of vectors [n, d] of L2 length at most `radius` (longer ones are shortened), n private.

    See `gaussian_mean_in_ball`; here for ε at δ.

    Returns:
      A mean of length at most `radius`, float64 [d]; add-or-remove-one. Vectors that are not finite count as absent.

    Raises:
      ValueError: an argument is out of range, in one line.
    """
    radius = checks.between("radius", radius, 1e-301, math.inf, "give a bound on the length of a vector that is public")
    epsilon = checks.positive("epsilon", epsilon, "give the cost of this mean")
    delta = checks.between("delta", delta, 0, 1, "1e-6 is usual, below 1 / records")
    array = as_floats("vectors", vectors)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"vectors have shape {list(array.shape)}: [n, d] is needed")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        lost = int((~finite).sum())
        log.warning("%d of %d vectors are not finite: left out (for the operator's eyes only)", lost, len(array))
        array = array[finite]
    source = SecureRandomness() if randomness is None else randomness
    multiplier = 1 / _gaussian_multiplier(epsilon, delta)
    _noise_in_ball(array.shape[1], multiplier)  # refuses before anything is paid for
    words = f"mean of vectors [{array.shape[1]}] of length up to {radius:g} by gaussian"
    guarantee = Guarantee(words, (costs.Gaussian(multiplier),), "add-or-remove-one", delta, hardness(source))
    if ledger is not None:
        ledger.record(guarantee)
    value, count, _ = gaussian_mean_in_ball(array, radius, multiplier, source)
    return Mean(value, count, guarantee)


class MeanInBall(NamedTuple):
    """As `Mean`, with the cost alone."""

    value: npt.NDArray[np.float64]
    records: float
    cost: costs.Gaussian


def gaussian_mean_in_ball(
    vectors: npt.NDArray[np.float64], radius: float, noise_multiplier: float, source: Randomness
) -> MeanInBall:
    """The private mean of finite vectors [n, d] for a given noise multiplier, n private.

    One Gaussian covers (Σ x, c n) with c² = radius² / √d, the split at which the mean's error is least: n² MSE =
    σ² radius² (1 + √d)² in place of σ² radius² d with n known.
    """
    size = vectors.shape[1]
    count_weight, sensitivity, stddev = _noise_in_ball(size, noise_multiplier)
    drawn = exact.gaussian(source, stddev, size + 1)
    count = max((len(vectors) * count_weight + int(drawn[-1])) / count_weight, 1.0)
    total = drawn[:-1]
    for first in range(0, len(vectors), _ROWS):  # whole steps take more room than the vectors: not all at once
        part = shortened(vectors[first : first + _ROWS].astype(np.float64), radius) / radius
        total = total + np.rint(np.clip(part, -1, 1) * STEPS).astype(np.int64).sum(axis=0)
    value = total / (STEPS * count)  # in radii
    value *= radius / max(float(np.linalg.norm(value)), 1.0)
    return MeanInBall(value, count, costs.Gaussian(stddev / sensitivity))


def _noise_in_ball(size: int, noise_multiplier: float) -> tuple[int, float, int]:
    """(c, sensitivity, noise's standard deviation), in grid steps a radius, of vectors [size]."""
    count_weight = round(STEPS / size**0.25)
    # Rounding to whole steps lengthens a vector by at most half a step a coordinate.
    longest = STEPS + math.ceil(math.sqrt(size) / 2) + 1
    sensitivity = math.hypot(longest, count_weight)
    stddev = math.ceil(sensitivity * noise_multiplier)
    if stddev > exact.LARGEST_SCALE:
        raise ValueError(f"noise multiplier {noise_multiplier:g} is too large for any result: take a larger epsilon")
    return count_weight, sensitivity, stddev


def hourglass_core(epsilon: float) -> float:
    """γ*: half the width of the innermost level, for a sensitivity of 1, at which the variance is least (Geng and
    Viswanath, arXiv:1212.1186, for squared error).
    """
    b = math.exp(-epsilon)
    rise = -math.expm1(-epsilon)
    # b - 2b² + 2b⁴ - b⁵ = b (1 - b)³ (1 + b), which loses no digits where b is near 1.
    root = (b * rise**3 * (1 + b) / 2) ** (1 / 3)
    return (root / rise - b) / rise


def worst_case(epsilon: float) -> float:
    """V*(ε): the least n² MSE in the worst case of an ε-DP mean in [0, 1], for many records (arXiv:2312.06658)."""
    b = math.exp(-epsilon)
    return (2 ** (-2 / 3) * (b * (1 + b)) ** (2 / 3) + b) / math.expm1(-epsilon) ** 2


@functools.lru_cache(maxsize=64)
def _gaussian_multiplier(epsilon: float, delta: float) -> float:
    """Sensitivity / standard deviation of Gaussian noise that is (ε, δ)-DP by the exact curve (arXiv:1805.06530)."""
    from scipy.optimize import brentq

    from privacy.accounting.composition import gaussian_epsilon

    def excess(log_z: float) -> float:
        return gaussian_epsilon(math.exp(log_z), delta) - epsilon

    low, high = 0.0, 0.0
    while excess(high) > 0:
        high += 1
    while excess(low) < 0:
        low -= 1
    return 1 / (math.exp(brentq(excess, low, high, xtol=1e-12)) * (1 + 1e-9))

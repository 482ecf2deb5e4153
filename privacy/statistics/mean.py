"""Releases private means of bounded numbers; under add-or-remove-one the number of records is private too.

The method is that of Kulesza, Suresh and Wang 2024 (arXiv:2312.06658). It releases only the pair of sums
(Σ (x - lower), Σ (upper - x)). One record adds to each sum a non-negative number, and the two numbers add up to the
width, upper - lower. So noise for an L1 sensitivity of one width protects both sums. The mean and the number of records
follow from the pair. Sums and noise are integers (grid steps), and the only division comes last.
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
from privacy.accounting.guarantee import Guarantee, describe_noise
from privacy.arrays import as_floats
from privacy.noise import exact
from privacy.noise.exact import EXPONENT_BITS
from privacy.noise.randomness import Randomness, SecureRandomness
from privacy.noise.training import exact_delta
from privacy.sampling import Relation

if TYPE_CHECKING:
    from privacy.budget import Releases

Mechanism = Literal["hourglass", "transformed-laplace", "midpoint", "sum-count", "gaussian"]

STEPS = 2**32
"""Number of grid steps from lower to upper. Rounding to them moves a mean by at most 2^-33 of the width."""

_MIN_EPSILON, _MAX_EPSILON = 1e-6, 50.0  # for one coordinate

log = logging.getLogger(__name__)


class Mean(NamedTuple):
    """Holds a private mean and its guarantee.

    Attributes:
      value: the mean, a float or float64 [d]; the middle of the bounds if the noised number of records is 0.
      records: noised number of records, averaged over coordinates; under "replace-one" the true number, which is public
        there.
      guarantee: ε with unit, relation, δ, sampler, mechanism and noise.
    """

    value: Any
    records: float
    guarantee: Guarantee


@dataclasses.dataclass(frozen=True)
class BoundedMean:
    """Releases a private mean in two steps: `sums` of each part of the data (a stream, many devices), then `release`.

    The sums of the parts add up to the sums of all data. `release` adds noise to the total once and divides.

    Attributes:
      lower: public lower bound; smaller values are raised to it.
      upper: public upper bound, above `lower`; larger values are lowered to it.
      epsilon: ε of one release, from 1e-6 to 50 for each coordinate; with "gaussian" it is stated at `delta`.
      mechanism: "hourglass" has the least worst-case error under pure ε, for every ε. "transformed-laplace" has nearly
        the same error up to ε = 1. "midpoint" splits ε between a centred sum and the count, as Google's BoundedMean
        does, and has at least twice the error. "sum-count" splits ε between the sum and the count. "gaussian" is for
        (ε, δ) accounts and has the least error where many releases are composed.
      relation: under "add-or-remove-one" the number of records is private; under "replace-one" it is public, and only
        the sum gets noise.
      delta: δ of "gaussian", in (0, 1); 0 for the others.
      coordinates: number of coordinates of a record, at least 1. ε covers all of them together.
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
            raise ValueError(
                f"upper - lower overflows for lower {self.lower:g}, upper {self.upper:g}: use another unit"
            )
        checks.positive("epsilon", self.epsilon, "give the privacy cost of this mean")
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
        checks.whole("coordinates", self.coordinates, 1, "give the number of coordinates of a record")
        if not _MIN_EPSILON <= self._coordinate_epsilon <= _MAX_EPSILON:
            raise ValueError(
                f"epsilon {self.epsilon:g} is {self._coordinate_epsilon:g} for each coordinate: give {_MIN_EPSILON:g} "
                f"(less needs noise beyond the grid) to {_MAX_EPSILON:g} (more protects nobody)"
            )
        if self.mechanism != "hourglass" and self._scale > exact.LARGEST_SCALE:
            raise ValueError(
                f"more noise than the grid holds: increase epsilon {self.epsilon:g} or delta {self.delta:g}"
            )

    def sums(self, values: Any) -> npt.NDArray[Any]:
        """Returns (Σ (x - lower), Σ (upper - x)) of numbers [n] or [n, coordinates], in grid steps.

        Values outside the bounds are clamped. A record with NaN counts as absent. Under replace-one, where the number
        of records is public, each NaN counts as the middle of the bounds instead. The log warns the operator. No
        error is raised, because an error would reveal that the record is there.

        Returns:
          Python integers, object [2, coordinates], which do not overflow when the sums of parts are added up.

        Raises:
          ValueError: `values` have another shape, are not numbers, or hold more than 2^30 records.
        """
        array = as_floats("values", values)
        if array.ndim == 1 and (self.coordinates == 1 or not array.size):
            array = array.reshape(-1, self.coordinates)
        if array.ndim != 2 or array.shape[1] != self.coordinates:
            shape = "[n]" if self.coordinates == 1 else f"[n, {self.coordinates}]"
            raise ValueError(f"values have shape {list(array.shape)}: {shape} is needed")
        if len(array) > 2**30:
            raise ValueError(f"values hold {len(array)} records, more than 2^30: add up the sums of parts")
        absent = np.isnan(array).any(axis=1)
        if absent.any():
            log.warning("%d of %d records hold NaN (for the operator only)", absent.sum(), len(array))
            if self.relation == "replace-one":
                array[np.isnan(array)] = self.lower / 2 + self.upper / 2
            else:
                array = array[~absent]
        # Clamp first and scale last, so that nothing overflows, whatever the bounds and values.
        share = (np.clip(array, self.lower, self.upper) - self.lower) / (self.upper - self.lower)
        steps = np.rint(np.clip(share, 0, 1) * STEPS).astype(np.int64)
        above = steps.sum(axis=0).astype(object)
        return np.stack([above, len(array) * STEPS - above])

    def release(self, sums: Any, randomness: Randomness | None = None, ledger: Releases | None = None) -> Mean:
        """Adds noise to the sums and returns the private mean. Each call costs ε again, even with the same sums.

        Args:
          sums: integers [2, coordinates] from `sums`, added up over the parts of the data.
          randomness: source of the noise; None: the operating system's.
          ledger: ledger of a `privacy.Budget`; the release is recorded there before any noise is drawn.

        Raises:
          ValueError: `sums` have another shape or are not non-negative integers, or the budget does not allow the
            release.
        """
        source = SecureRandomness() if randomness is None else randomness
        array = np.asarray(sums, object)
        if array.shape != (2, self.coordinates):
            raise ValueError(f"sums have shape {list(array.shape)}: [2, {self.coordinates}] is needed, see sums()")
        try:
            above, below = ([operator.index(number) for number in row] for row in array)
        except TypeError:
            raise ValueError("sums are not integers: give those of sums(), added up") from None
        if min(*above, *below) < 0:
            raise ValueError("sums are below 0, as after an overflow: add up the Python integers that sums() returns")
        guarantee = self._build_guarantee(source)
        if ledger is not None:
            ledger.record(guarantee)
        shares, counts = zip(*self._release_pairs(above, below, source), strict=True)
        value = np.clip(self.lower + np.asarray(shares) * (self.upper - self.lower), self.lower, self.upper)
        return Mean(value.item() if self.coordinates == 1 else value, float(np.mean(counts)), guarantee)

    @property
    def _coordinate_epsilon(self) -> float:
        """Returns the ε of one coordinate, for mechanisms that release each on its own: all but "gaussian"."""
        return self.epsilon / self.coordinates

    @property
    def _scale(self) -> int:
        """Returns the scale or standard deviation of the noise in grid steps, rounded up; not for "hourglass"."""
        match self.mechanism:
            case "gaussian":
                # With x in widths, (x, 1 - x) has an L2 norm of at most 1, and replacing a record moves x by at most
                # 1. So the L2 sensitivity of all d coordinates is √d widths.
                scale = STEPS * math.sqrt(self.coordinates) / sensitivity_over_stddev(self.epsilon, self.delta)
            case "midpoint" | "sum-count":
                scale = 2 * STEPS / self._coordinate_epsilon
            case _:
                scale = STEPS / self._coordinate_epsilon
        return math.ceil(scale) + 1  # the division may have rounded down

    def _draw(self, source: Randomness, size: int) -> list[int]:
        """Draws `size` values of the noise that the mechanism adds to a single sum."""
        if self.mechanism == "gaussian":
            return exact.gaussian(source, self._scale, size).tolist()
        if self.mechanism == "hourglass":
            return exact.staircase(source, *self._shape, size).tolist()
        return exact.laplace(source, self._scale, size).tolist()

    def _release_pairs(self, above: list[int], below: list[int], source: Randomness) -> list[tuple[float, float]]:
        """Adds noise to each pair of sums and returns ((mean - lower) / width, number of records) for each pair."""
        if self.relation == "replace-one":
            return self._release_replace_one(above, below, source)
        if self.mechanism == "hourglass":
            noise = exact.hourglass(source, *self._shape, len(above)).tolist()
        else:
            noise = np.reshape(self._draw(source, 2 * len(above)), (2, -1)).tolist()
        results = []
        for first, second, noise_1, noise_2 in zip(above, below, *noise, strict=True):
            if self.mechanism in ("midpoint", "sum-count"):
                results.append(self._release_sum_and_count(first, first + second, noise_1, noise_2))
                continue
            first, second = max(first + noise_1, 0), max(second + noise_2, 0)
            results.append((first / (first + second) if first + second else 0.5, (first + second) / STEPS))
        return results

    def _release_sum_and_count(self, total: int, count: int, noise_1: int, noise_2: int) -> tuple[float, float]:
        """Returns (share, number of records) from a sum and a count, in grid steps, each released with half of ε."""
        noisy_count = max(count + noise_2, STEPS)
        if self.mechanism == "sum-count":
            return min(max((total + noise_1) / noisy_count, 0.0), 1.0), noisy_count / STEPS
        centred = 2 * total - count + noise_1  # twice the sum of x - 1/2; one record moves it by at most one width
        return min(max(0.5 + centred / (2 * noisy_count), 0.0), 1.0), noisy_count / STEPS

    def _release_replace_one(self, above: list[int], below: list[int], source: Randomness) -> list[tuple[float, float]]:
        results = []
        for first, second, noise in zip(above, below, self._draw(source, len(above)), strict=True):
            count = first + second  # the public number of records, in grid steps
            share = (first + noise) / count if count else 0.5
            results.append((min(max(share, 0.0), 1.0), count / STEPS))
        return results

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Returns (epsilon, sensitivity, core), the parameters of staircase and hourglass noise.

        `epsilon` is that of one coordinate, in units of 2^-`EXPONENT_BITS`, rounded down. `sensitivity` and `core`
        (half the width of level 0) are in grid steps.
        """
        epsilon = math.floor(self._coordinate_epsilon * 2**EXPONENT_BITS) - 1
        return epsilon, STEPS, round(hourglass_core(self._coordinate_epsilon) * STEPS)

    def _build_guarantee(self, source: Randomness) -> Guarantee:
        cost: costs.Cost = costs.Pure(self.epsilon)
        if self.mechanism == "gaussian":
            cost = costs.Gaussian(self._scale / (STEPS * math.sqrt(self.coordinates)))
        of = "" if self.coordinates == 1 else f" of {self.coordinates} coordinates"
        description = f"mean{of} in [{self.lower:g}, {self.upper:g}] by {self.mechanism}"
        return Guarantee(description, (cost,), self.relation, self.delta, describe_noise(source))


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
    """Releases the private mean of numbers [n], or of each coordinate of records [n, d], with bounds lower and upper.

    Under `relation` the release is ε-DP. With "gaussian" it is ρ-zCDP instead (ρ is `guarantee.rho`), and its (ε, δ) is
    computed as for continuous Gaussian noise. For vectors of bounded L2 norm, use `mean_in_ball`.

    Args:
      values: numbers [n] or [n, d]; see `BoundedMean.sums` for NaN and for values outside the bounds.
      lower: public lower bound, as for `BoundedMean`.
      upper: public upper bound, above `lower`.
      epsilon: ε, above 0.
      mechanism: as for `BoundedMean`.
      relation: "add-or-remove-one" or "replace-one", as for `BoundedMean`.
      delta: δ of "gaussian", in (0, 1); 0 for the others.
      randomness: source of random bits, as for `BoundedMean.release`.
      ledger: ledger of a `Budget`, as for `BoundedMean.release`.

    Raises:
      ValueError: an argument is out of range, or the budget does not allow the release.
    """
    array = as_floats("values", values)
    coordinates = array.shape[1] if array.ndim == 2 else 1
    mean = BoundedMean(lower, upper, epsilon, mechanism, relation, delta, coordinates)
    result = mean.release(mean.sums(array), randomness, ledger)
    return result if array.ndim != 2 else result._replace(value=np.reshape(result.value, coordinates))


def hourglass_core(epsilon: float) -> float:
    """Returns γ*, half the width of level 0 in sensitivities, at which the variance is least (arXiv:1212.1186)."""
    b = math.exp(-epsilon)
    rise = -math.expm1(-epsilon)
    # b - 2b² + 2b⁴ - b⁵ = b (1 - b)³ (1 + b). The factored form loses no digits where b is near 1.
    root = (b * rise**3 * (1 + b) / 2) ** (1 / 3)
    return (root / rise - b) / rise


def worst_case(epsilon: float) -> float:
    """Returns V*(ε), n² times the least worst-case mean squared error of an ε-DP mean of n values, for large n.

    The values lie in [0, 1]. V* is the same under add-or-remove-one and replace-one (arXiv:2312.06658).
    """
    b = math.exp(-epsilon)
    return (2 ** (-2 / 3) * (b * (1 + b)) ** (2 / 3) + b) / math.expm1(-epsilon) ** 2


@functools.lru_cache(maxsize=64)
def sensitivity_over_stddev(epsilon: float, delta: float) -> float:
    """Returns 1 / noise multiplier of Gaussian noise that is (ε, δ)-DP by its exact curve (arXiv:1805.06530).

    The ε that accounting computes for this noise, or for more noise, is at most `epsilon`. So a budget of `epsilon`
    allows the release.
    """
    from scipy.optimize import brentq

    from privacy.accounting.composition import gaussian_epsilon

    def excess(log_z: float) -> float:
        return gaussian_epsilon(math.exp(log_z), exact_delta(delta)) - epsilon

    low, high = 0.0, 0.0
    while excess(high) > 0:
        high += 1
    while excess(low) < 0:
        low -= 1
    log_z, step = brentq(excess, low, high, xtol=1e-12), 1e-9
    while excess(log_z) > -min(1e-11, epsilon / 2):  # `gaussian_epsilon` may be off by 1e-12
        log_z, step = log_z + step, 2 * step
    return 1 / math.exp(log_z)

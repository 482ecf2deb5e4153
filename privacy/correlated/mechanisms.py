"""Defines the mechanisms with correlated noise (DP-FTRL): tree aggregation, banded Toeplitz and BLT.

The sums of n rounds, the rows of G, are released as B (C G + Z). Here A = B C is the workload (`workload`), and Z is
independent Gaussian noise of standard deviation noise multiplier * clip norm * sensitivity of C (`sensitivity`). So all
rounds together are one Gaussian mechanism, whatever the server's rounds depend on (Denisov et al. 2022,
https://arxiv.org/abs/2202.08312, theorem 2.1): later sums may depend on earlier releases. Each round's sum gets its row
of C^-1 Z as noise. Noise that is added in one round is partly taken back in later ones, which keeps the error of prefix
sums small without any amplification by sampling.

C must not depend on the data. So the clip norm is fixed: under an adaptive clip norm the noise of earlier rounds, in
the units of a later clip norm, would no longer be the one that C cancels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from privacy import checks, kinds
from privacy.correlated.participation import Participation
from privacy.correlated.sensitivity import Sensitivity, of_toeplitz
from privacy.correlated.toeplitz import divide, root_mean_square_error
from privacy.correlated.tree_sums import tree_error, tree_sensitivity
from privacy.correlated.workload import Workload

if TYPE_CHECKING:
    from privacy.plan import PrivacyPlan

MAX_ROUNDS = 20_000
"""Maximum number of rounds with correlated noise, for which rounding of the noise is bounded (`MAX_ENTRY`)."""
MAX_TREE_ROUNDS = 4096
"""Maximum number of rounds of the tree, whose sensitivity takes time and memory that grow with the separation."""
MAX_BANDS = 4096
MAX_COEFFICIENT = 1e6
"""Maximum absolute value of a band's coefficient. Far larger ones would make the noise infinite."""
MAX_BUFFERS = 16
MAX_ENTRY = 16
"""Maximum absolute entry of a banded matrix C and of C^-1. Then a row of C^-1 has a norm of at most 16 sqrt(20,000)
< 2^12, and rounding the noise to float32, with relative error 2^-24, changes it by below 2^-12 of the fresh noise."""


class _AsDict:
    """Provides the JSON form of a mechanism."""

    kind: ClassVar[str]

    def to_dict(self: Any) -> dict[str, Any]:
        """Returns the mechanism as a JSON-able dict, with its name under `kind`."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {"kind": self.kind, **fields}


@dataclasses.dataclass(frozen=True)
class Tree(_AsDict):
    """Describes tree aggregation with Honaker's variance reduction.

    Attributes:
      restart_every: number of rounds after which a new tree begins, at least 1; None for one tree over all rounds.
    """

    restart_every: int | None = None
    kind: ClassVar[str] = "tree"
    max_rounds: ClassVar[int] = MAX_TREE_ROUNDS

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        if self.restart_every is not None:
            checks.whole("restart_every", self.restart_every, 1, "leave it out for one tree over all rounds")

    def sensitivity(self, rounds: int, participation: Participation) -> Sensitivity:
        """Returns the sensitivity of the first `rounds` rounds, in units of the clip norm, zero-out."""
        return tree_sensitivity(rounds, self.restart_every, participation)

    def error(self, rounds: int) -> float:
        """Returns the root mean square error of the prefix sums for noise of standard deviation 1."""
        return tree_error(rounds, self.restart_every)

    def vectors(self, rounds: int) -> int:
        """Returns the number of vectors of the model's size that the server keeps between rounds."""
        return min(rounds, self.restart_every or rounds).bit_length()

    def describe(self) -> str:
        """Returns the mechanism in one phrase, for reports."""
        restarts = "" if self.restart_every is None else f", a new tree every {self.restart_every} rounds"
        return f"tree aggregation with Honaker's variance reduction{restarts}"


@dataclasses.dataclass(frozen=True)
class Banded(_AsDict):
    """Describes a Toeplitz matrix C with few bands (Choquette-Choo et al. 2023, https://arxiv.org/abs/2306.08153).

    Attributes:
      coefficients: the first column of C up to its last entry that is not 0; the first one is 1. Their number is the
        number of bands.
      optimized_for: what they were optimised for, in words; for reports.
    """

    coefficients: tuple[float, ...]
    optimized_for: str = "nothing"
    kind: ClassVar[str] = "banded"
    max_rounds: ClassVar[int] = MAX_ROUNDS

    def __post_init__(self) -> None:
        fix = "use privacy.correlated.optimize_banded"
        object.__setattr__(self, "coefficients", checks.reals("coefficients", self.coefficients, fix))
        if not 1 <= len(self.coefficients) <= MAX_BANDS or self.coefficients[0] != 1:
            raise ValueError(
                f"coefficients has {len(self.coefficients)} entries, the first {self.coefficients[:1]}: give 1 to "
                f"{MAX_BANDS:,}, the first 1"
            )
        for value in self.coefficients:
            if not abs(value) <= MAX_COEFFICIENT:
                raise ValueError(f"coefficients must be finite and in [-1e6, 1e6], got {value!r}: {fix}")

    @property
    def bands(self) -> int:
        """Returns the number of bands."""
        return len(self.coefficients)

    def column(self, rounds: int) -> npt.NDArray[np.float64]:
        """Returns the first column of C, float64 [rounds]."""
        rounds = checks.whole("rounds", rounds, 1, "count the rounds")
        return np.pad(np.array(self.coefficients[:rounds]), (0, max(0, rounds - self.bands)))

    def sensitivity(self, rounds: int, participation: Participation) -> Sensitivity:
        """Returns the sensitivity of the first `rounds` rounds, in units of the clip norm, zero-out."""
        return of_toeplitz(np.array(self.coefficients), rounds, participation)

    def error(self, rounds: int) -> float:
        """Returns the root mean square error of the prefix sums for noise of standard deviation 1."""
        return root_mean_square_error(np.array(self.coefficients), Workload(rounds))

    def vectors(self, rounds: int) -> int:
        """Returns the number of vectors of the model's size that the server keeps between rounds."""
        return self.bands - 1

    def describe(self) -> str:
        """Returns the mechanism in one phrase, for reports."""
        return f"banded Toeplitz matrix with {self.bands} bands, optimised for {self.optimized_for}"


@dataclasses.dataclass(frozen=True)
class BLT(_AsDict):
    """Describes a buffered linear Toeplitz matrix C: c_0 = 1 and c_i = sum_j weights_j decays_j^(i-1).

    References: Dvijotham et al. 2024, https://arxiv.org/abs/2404.16706; McMahan et al. 2024, "A hassle-free algorithm
    for private learning in practice", https://arxiv.org/abs/2408.08868.

    Attributes:
      decays: decay of each buffer, in [0, 1].
      weights: weight of each buffer, at least 0, with a sum of at most 1. Then the coefficients are non-negative and
        non-increasing, which the formula for the sensitivity needs.
      optimized_for: what they were optimised for, in words; for reports.
    """

    decays: tuple[float, ...]
    weights: tuple[float, ...]
    optimized_for: str = "nothing"
    kind: ClassVar[str] = "blt"
    max_rounds: ClassVar[int] = MAX_ROUNDS

    def __post_init__(self) -> None:
        for name in ("decays", "weights"):
            numbers = checks.reals(name, getattr(self, name), "use privacy.correlated.optimize_blt")
            object.__setattr__(self, name, numbers)
        if not 1 <= len(self.decays) == len(self.weights) <= MAX_BUFFERS:
            raise ValueError(
                f"{len(self.decays)} decays and {len(self.weights)} weights: give as many of each, 1 to {MAX_BUFFERS}"
            )
        for decay in self.decays:
            if not 0 <= decay <= 1:
                raise ValueError(f"decays must lie in [0, 1], got {decay!r}: the coefficients must not grow")
        for weight in self.weights:
            if not weight >= 0:
                raise ValueError(f"weights must be at least 0, got {weight!r}: no coefficient may be negative")
        if not math.fsum(self.weights) <= 1:
            raise ValueError(
                f"weights have the sum {math.fsum(self.weights):g}: give at most 1, so that coefficients do not grow"
            )

    def column(self, rounds: int) -> npt.NDArray[np.float64]:
        """Returns the first column of C, float64 [rounds]."""
        rounds = checks.whole("rounds", rounds, 1, "count the rounds")
        powers = np.array(self.decays)[:, None] ** np.arange(rounds - 1)
        column = np.concatenate([[1.0], np.array(self.weights) @ powers])
        # The exact coefficients never grow; rounding may lift one by its last bit.
        return np.minimum.accumulate(column)

    def sensitivity(self, rounds: int, participation: Participation) -> Sensitivity:
        """Returns the sensitivity of the first `rounds` rounds, in units of the clip norm, zero-out."""
        return of_toeplitz(self.column(rounds), rounds, participation)

    def error(self, rounds: int) -> float:
        """Returns the root mean square error of the prefix sums for noise of standard deviation 1."""
        return root_mean_square_error(self.column(rounds), Workload(rounds))

    def vectors(self, rounds: int) -> int:
        """Returns the number of vectors of the model's size that the server keeps between rounds."""
        return len(self.decays)

    def describe(self) -> str:
        """Returns the mechanism in one phrase, for reports."""
        buffers = f"{len(self.decays)} buffer{'s' * (len(self.decays) > 1)}"
        return f"buffered linear Toeplitz matrix (BLT) with {buffers}, optimised for {self.optimized_for}"


Mechanism = Tree | Banded | BLT
_KINDS: dict[Any, Any] = {Tree.kind: Tree, Banded.kind: Banded, BLT.kind: BLT}


def check_fits(mechanism: Mechanism, plan: PrivacyPlan) -> None:
    """Raises ValueError, with the reason, if a plan cannot have this mechanism."""
    if not isinstance(mechanism, (Tree, Banded, BLT)):
        raise ValueError(f"mechanism is {mechanism!r}: give one of privacy.correlated, or None")
    kind = mechanism.kind
    if not plan.is_private:
        raise ValueError(f"mechanism is {kind!r} but noise_multiplier is 0: raise noise_multiplier")
    if plan.sampling.kind in ("poisson", "fixed-size"):
        raise ValueError(
            f"mechanism {kind!r} needs limits on a client's rounds, and {plan.sampling.kind} sampling has none: use "
            "Cyclic, CyclicPoisson or CheckIn"
        )
    if plan.clip is not None and plan.clip.kind == "adaptive":
        raise ValueError(
            f"clip is adaptive and mechanism is {kind!r}: its matrix is fixed before the run, and in the units of a "
            "changed clip norm the noise of earlier rounds would no longer cancel as it says; give FixedClip"
        )
    if plan.noise != "floating-point":
        raise ValueError(
            f"noise is {plan.noise!r} and mechanism is {kind!r}: correlated noise is no multiple of an integer step; "
            "use 'floating-point'"
        )
    if plan.rounds > mechanism.max_rounds:
        raise ValueError(f"rounds must be at most {mechanism.max_rounds:,} with mechanism {kind!r}: plan fewer")
    if isinstance(mechanism, Banded):
        cached_sensitivity(mechanism, plan.rounds, plan.participation)  # refuses coefficients without a proved one
        _check_stable(mechanism, plan.rounds)


def _check_stable(mechanism: Banded, rounds: int) -> None:
    """Raises ValueError if rounding to float32 could take the fresh noise out of the noise of a late round."""
    column = mechanism.column(rounds)
    with np.errstate(over="ignore", invalid="ignore"):
        inverse = divide(np.eye(1, rounds)[0], column[: mechanism.bands])
    largest = float(np.max(np.abs([column, inverse])))
    if not largest <= MAX_ENTRY:  # NaN after an overflow
        raise ValueError(
            f"coefficients of mechanism 'banded' give entries of C or C^-1 up to {largest:g} in {rounds} rounds, above "
            f"{MAX_ENTRY}, so that float32 would round fresh noise away: use privacy.correlated.optimize_banded"
        )


@functools.lru_cache(maxsize=1024)
def cached_sensitivity(mechanism: Mechanism, rounds: int, participation: Participation) -> Sensitivity:
    """Returns `mechanism.sensitivity`, computed once."""
    return mechanism.sensitivity(rounds, participation)


def from_dict(data: dict[str, Any]) -> Mechanism:
    """Returns the mechanism that its `to_dict` wrote; raises ValueError for an unknown kind or field."""
    mechanism: Mechanism = kinds.from_dict("mechanism", data, _KINDS)
    return mechanism

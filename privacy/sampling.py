"""The three ways a round's cohort may be chosen, each with the neighbouring relation its accounting holds
for.

The sampler decides which theorem applies, so the relation is a fact of the sampler and not a separate choice:
amplification by Poisson sampling is proved for adding or removing a client, fixed-size sampling for
replacing one, and a fixed cyclic partition only bounds how often one client's data can enter (its data
replaced by none, everybody else's place unchanged).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from privacy import checks

if TYPE_CHECKING:
    import dp_accounting

Relation = Literal["add-or-remove-one", "replace-one", "zero-out"]


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Each client enters each round's cohort independently with probability `sampling_probability`.

    Attributes:
      sampling_probability: probability q, in (0, 1].
    """

    sampling_probability: float
    relation: ClassVar[Relation] = "add-or-remove-one"
    kind: ClassVar[str] = "poisson"
    min_separation: ClassVar[int] = 1

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.between(
            "sampling_probability", self.sampling_probability, 0, 1, "give cohort size / population", closed_high=True
        )

    def expected_cohort(self, population: int) -> float:
        """Mean number of clients in a round, sampling_probability * population."""
        return self.sampling_probability * population

    def check(self, population: int) -> None:
        """Any rate fits any population."""

    def max_participations(self, rounds: int) -> int:
        """Most rounds one client can be in."""
        return rounds

    def repetitions(self, rounds: int) -> int:
        """How many times one round's event is composed with itself over `rounds` rounds."""
        return rounds

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """One round as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        import dp_accounting as dp

        return dp.PoissonSampledDpEvent(self.sampling_probability, dp.GaussianDpEvent(float(noise_multiplier)))

    def describe(self) -> str:
        """One phrase for reports."""
        return f"Poisson: each client joins each round independently with probability {self.sampling_probability:.6g}"


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Exactly `size` different clients, drawn uniformly without replacement, afresh each round.

    Attributes:
      size: clients in a cohort, at least 1.
    """

    size: int
    relation: ClassVar[Relation] = "replace-one"
    kind: ClassVar[str] = "fixed-size"
    min_separation: ClassVar[int] = 1

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("cohort size", self.size, 1, "give the number of clients in a round")

    def expected_cohort(self, population: int) -> float:
        """Number of clients in a round, whatever the population."""
        return float(self.size)

    def check(self, population: int) -> None:
        """Raises ValueError for a cohort larger than the population."""
        if self.size > population:
            raise ValueError(f"cohort size {self.size} is larger than the population {population}: take a smaller one")

    def max_participations(self, rounds: int) -> int:
        """Most rounds one client can be in."""
        return rounds

    def repetitions(self, rounds: int) -> int:
        """How many times one round's event is composed with itself over `rounds` rounds."""
        return rounds

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """One round as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        import dp_accounting as dp

        # The library's noise is relative to what replacing a client can do to the sum, 2 clips where adding
        # one does 1.
        halved = dp.GaussianDpEvent(noise_multiplier / 2)
        return dp.SampledWithoutReplacementDpEvent(population, self.size, halved)

    def describe(self) -> str:
        """One phrase for reports."""
        return f"fixed size: exactly {self.size} clients a round, without replacement"


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """A fixed partition of the clients into `cohorts` cohorts that take turns: nobody is seen twice within
    a cycle.

    One convention for separation here: two rounds i < j of one client satisfy j - i >= cohorts. The
    literature has two, one apart; use the named constructor that matches your source.

    Attributes:
      cohorts: number of cohorts in a cycle, at least 1.
    """

    cohorts: int
    relation: ClassVar[Relation] = "zero-out"
    kind: ClassVar[str] = "cyclic"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("cyclic cohorts", self.cohorts, 1, "give the number of cohorts that take turns")

    @classmethod
    def by_round_distance(cls, distance: int) -> Cyclic:
        """Separation as |i - j| >= distance (jax-privacy's `min_sep`; Choquette-Choo et al. 2022,
        arXiv:2211.06530).
        """
        return cls(checks.whole("round distance", distance, 1, "two rounds of one client differ by at least 1"))

    @classmethod
    def by_rounds_between(cls, between: int) -> Cyclic:
        """Separation as j - i - 1 >= between (TensorFlow Privacy's `min_separation`; arXiv:2103.00039)."""
        return cls(checks.whole("rounds between", between, 0, "0 allows a client in consecutive rounds") + 1)

    @property
    def min_separation(self) -> int:
        """Least |i - j| of two rounds of one client."""
        return self.cohorts

    def expected_cohort(self, population: int) -> float:
        """Mean number of clients in a round over a cycle."""
        return population / self.cohorts

    def check(self, population: int) -> None:
        """Raises ValueError for more cohorts than clients."""
        if self.cohorts > population:
            raise ValueError(f"cyclic cohorts {self.cohorts} are more than the population {population}: take fewer")

    def max_participations(self, rounds: int) -> int:
        """Most rounds one client can be in: ceil(rounds / cohorts), which the separation implies."""
        return math.ceil(rounds / self.cohorts)

    def repetitions(self, rounds: int) -> int:
        """How many times one round's event is composed with itself over `rounds` rounds."""
        return self.max_participations(rounds)

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """One round with the client in it as a `dp_accounting` event; `noise_multiplier` is noise / clip
        norm.
        """
        import dp_accounting as dp

        return dp.GaussianDpEvent(float(noise_multiplier))

    def describe(self) -> str:
        """One phrase for reports."""
        return f"cyclic: a fixed partition into {self.cohorts} cohorts that take turns"


Sampling = Poisson | FixedSize | Cyclic
_KINDS: dict[Any, Any] = {Poisson.kind: Poisson, FixedSize.kind: FixedSize, Cyclic.kind: Cyclic}


def to_dict(sampling: Sampling) -> dict[str, Any]:
    """JSON-able form, with the sampler's name under `kind`."""
    return {"kind": sampling.kind, **dataclasses.asdict(sampling)}


def from_dict(data: dict[str, Any]) -> Sampling:
    """Inverse of `to_dict`; raises ValueError for an unknown kind or field."""
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"sampling kind {kind!r} is unknown: use one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**fields)
    except TypeError:
        raise ValueError(f"sampling fields {sorted(fields)} do not fit kind {kind!r}: see privacy.sampling") from None

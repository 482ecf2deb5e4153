"""Describes the samplers of a round's cohort, each with the neighbouring relation that its accounting holds for.

The sampler decides which theorem applies. So the relation follows from the sampler and is not a separate choice. The
theorems used here prove amplification by Poisson sampling under add-or-remove-one, and by fixed-size sampling under
replace-one. A fixed cyclic partition, or clients who check in, have no amplification: there are only limits on how
often one client can take part. Their relation is zero-out, in which a client's data become empty, every client keeps
its rounds, and which rounds those are may be public.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from privacy import checks, kinds

if TYPE_CHECKING:
    import dp_accounting

Relation = Literal["add-or-remove-one", "replace-one", "zero-out"]


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Describes Poisson sampling: each client joins each round independently, with probability `sampling_probability`.

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
        """Returns the mean number of clients in a round, sampling_probability * population."""
        return self.sampling_probability * population

    def check(self, population: int) -> None:
        """Accepts every population, because any sampling probability fits any population."""

    def max_participations(self, rounds: int) -> int:
        """Returns the maximum number of rounds that one client can be in."""
        return rounds

    def repetitions(self, rounds: int) -> int:
        """Returns how many times one round's event is composed with itself over `rounds` rounds."""
        return rounds

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Returns one round as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        import dp_accounting as dp

        return dp.PoissonSampledDpEvent(self.sampling_probability, dp.GaussianDpEvent(float(noise_multiplier)))

    def describe(self) -> str:
        """Returns a description of the sampler in one phrase, for reports."""
        return f"Poisson: each client joins each round independently with probability {self.sampling_probability:.6g}"


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Describes fixed-size sampling: each round draws exactly `size` clients, uniformly without replacement.

    The draws of different rounds are independent.

    Attributes:
      size: number of clients in a cohort, at least 1.
    """

    size: int
    relation: ClassVar[Relation] = "replace-one"
    kind: ClassVar[str] = "fixed-size"
    min_separation: ClassVar[int] = 1

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("size", self.size, 1, "give the number of clients in a round")

    def expected_cohort(self, population: int) -> float:
        """Returns the number of clients in a round, which does not depend on the population."""
        return float(self.size)

    def check(self, population: int) -> None:
        """Raises ValueError if the cohort is larger than the population."""
        if self.size > population:
            raise ValueError(f"cohort size {self.size} is larger than the population {population}: give a smaller one")

    def max_participations(self, rounds: int) -> int:
        """Returns the maximum number of rounds that one client can be in."""
        return rounds

    def repetitions(self, rounds: int) -> int:
        """Returns how many times one round's event is composed with itself over `rounds` rounds."""
        return rounds

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Returns one round as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        import dp_accounting as dp

        # dp-accounting wants noise relative to the sensitivity: replacing a client moves the sum by up to twice the
        # clip norm.
        halved = dp.GaussianDpEvent(noise_multiplier / 2)
        return dp.SampledWithoutReplacementDpEvent(population, self.size, halved)

    def describe(self) -> str:
        """Returns a description of the sampler in one phrase, for reports."""
        return f"fixed size: exactly {self.size} clients per round, without replacement"


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """Describes cyclic sampling: a fixed partition of the clients into `cohorts` cohorts that take turns.

    No client takes part twice within a cycle. Two rounds i < j in which a client takes part satisfy j - i >= cohorts.
    The literature counts this separation in two ways that differ by one: use the named constructor that matches your
    source.

    Attributes:
      cohorts: number of cohorts in a cycle, at least 1.
    """

    cohorts: int
    relation: ClassVar[Relation] = "zero-out"
    kind: ClassVar[str] = "cyclic"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("cohorts", self.cohorts, 1, "give the number of cohorts that take turns")

    @classmethod
    def by_round_distance(cls, distance: int) -> Cyclic:
        """Returns the sampler for a separation counted as |i - j| >= distance.

        That is `min_sep` in jax-privacy and in Choquette-Choo et al. 2022 (arXiv:2211.06530).
        """
        return cls(checks.whole("distance", distance, 1, "two rounds of one client differ by at least 1"))

    @classmethod
    def by_rounds_between(cls, between: int) -> Cyclic:
        """Returns the sampler for a separation counted as j - i - 1 >= between.

        That is `min_separation` in TensorFlow Privacy and in Kairouz et al. 2021 (arXiv:2103.00039).
        """
        return cls(checks.whole("between", between, 0, "0 allows a client in consecutive rounds") + 1)

    @property
    def min_separation(self) -> int:
        """Returns the smallest |i - j| of two rounds i and j in which one client takes part."""
        return self.cohorts

    def expected_cohort(self, population: int) -> float:
        """Returns the mean number of clients in a round over a cycle."""
        return population / self.cohorts

    def check(self, population: int) -> None:
        """Raises ValueError if there are more cohorts than clients."""
        if self.cohorts > population:
            raise ValueError(f"cyclic cohorts {self.cohorts} are more than the population {population}: give fewer")

    def max_participations(self, rounds: int) -> int:
        """Returns the maximum number of rounds that one client can be in: ceil(rounds / cohorts)."""
        return math.ceil(rounds / self.cohorts)

    def repetitions(self, rounds: int) -> int:
        """Returns how many times one round's event is composed with itself over `rounds` rounds."""
        return self.max_participations(rounds)

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Returns one participation of a client as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        import dp_accounting as dp

        return dp.GaussianDpEvent(float(noise_multiplier))

    def describe(self) -> str:
        """Returns a description of the sampler in one phrase, for reports."""
        return f"cyclic: a fixed partition into {self.cohorts} cohorts that take turns"


@dataclasses.dataclass(frozen=True)
class CyclicPoisson:
    """Describes Poisson sampling within cyclic cohorts: the cohort whose turn it is, of a fixed partition, is sampled.

    Each client of that cohort joins independently with probability `sampling_probability`. Amplification is proved for
    independent noise and for banded noise with at most `cohorts` bands (Choquette-Choo et al. 2023, arXiv:2306.08153,
    theorem 4): the rounds of one client then have noise of their own.

    Attributes:
      cohorts: number of cohorts in a cycle, at least 1.
      sampling_probability: probability with which each client of the cohort joins its round, in (0, 1].
    """

    cohorts: int
    sampling_probability: float
    relation: ClassVar[Relation] = "zero-out"
    kind: ClassVar[str] = "cyclic-poisson"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("cohorts", self.cohorts, 1, "give the number of cohorts that take turns")
        checks.between(
            "sampling_probability", self.sampling_probability, 0, 1, "1 takes whole cohorts", closed_high=True
        )

    @property
    def min_separation(self) -> int:
        """Returns the smallest |i - j| of two rounds i and j in which one client takes part."""
        return self.cohorts

    def expected_cohort(self, population: int) -> float:
        """Returns the mean number of clients in a round over a cycle."""
        return self.sampling_probability * population / self.cohorts

    def check(self, population: int) -> None:
        """Raises ValueError if there are more cohorts than clients."""
        Cyclic(self.cohorts).check(population)

    def max_participations(self, rounds: int) -> int:
        """Returns the maximum number of rounds that one client can be in: ceil(rounds / cohorts)."""
        return math.ceil(rounds / self.cohorts)

    def repetitions(self, rounds: int) -> int:
        """Returns how many times one round's event is composed with itself over `rounds` rounds."""
        return self.max_participations(rounds)

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Returns one turn of a client's cohort as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        return Poisson(self.sampling_probability).dp_event(population, noise_multiplier)

    def describe(self) -> str:
        """Returns a description of the sampler in one phrase, for reports."""
        return (
            f"cyclic Poisson: a fixed partition into {self.cohorts} cohorts that take turns; each client of the cohort "
            f"joins independently with probability {self.sampling_probability:.6g}"
        )


@dataclasses.dataclass(frozen=True)
class CheckIn:
    """Describes clients who check in when they can: each round takes `size` of those who may take part again.

    A client may take part again `min_separation` rounds after its last round, up to `participation_limit` times. Where
    fewer than `size` clients may, the cohort is smaller. No assumption is made on who checks in when, and nothing about
    it need be secret.

    Attributes:
      size: maximum number of clients in a cohort, at least 1; the denominator of every round's mean.
      min_separation: smallest |i - j| of two rounds i and j in which one client takes part, at least 1.
      participation_limit: maximum number of rounds of one client, at least 1; None for as many as the separation
        allows.
    """

    size: int
    min_separation: int
    participation_limit: int | None = None
    relation: ClassVar[Relation] = "zero-out"
    kind: ClassVar[str] = "check-in"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("size", self.size, 1, "give the number of clients in a round")
        checks.whole("min_separation", self.min_separation, 1, "two rounds of one client differ by at least 1")
        if self.participation_limit is not None:
            checks.whole("participation_limit", self.participation_limit, 1, "leave it out for no further limit")

    def expected_cohort(self, population: int) -> float:
        """Returns the number of clients in a round that is full."""
        return float(self.size)

    def check(self, population: int) -> None:
        """Raises ValueError if the cohort is larger than the population."""
        FixedSize(self.size).check(population)

    def max_participations(self, rounds: int) -> int:
        """Returns the maximum number of rounds that one client can be in."""
        possible = math.ceil(rounds / self.min_separation)
        return possible if self.participation_limit is None else min(possible, self.participation_limit)

    def repetitions(self, rounds: int) -> int:
        """Returns how many times one round's event is composed with itself over `rounds` rounds."""
        return self.max_participations(rounds)

    def dp_event(self, population: int, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Returns one participation of a client as a `dp_accounting` event; `noise_multiplier` is noise / clip norm."""
        return Cyclic(1).dp_event(population, noise_multiplier)

    def describe(self) -> str:
        """Returns a description of the sampler in one phrase, for reports."""
        limit = "" if self.participation_limit is None else f" and in at most {self.participation_limit} rounds"
        return (
            f"check-in: up to {self.size} clients per round, each at least {self.min_separation} rounds after its last "
            f"round{limit}"
        )


Sampling = Poisson | FixedSize | Cyclic | CyclicPoisson | CheckIn
_KINDS: dict[Any, Any] = {
    Poisson.kind: Poisson,
    FixedSize.kind: FixedSize,
    Cyclic.kind: Cyclic,
    CyclicPoisson.kind: CyclicPoisson,
    CheckIn.kind: CheckIn,
}


def to_dict(sampling: Sampling) -> dict[str, Any]:
    """Returns the sampler as a JSON-able dict, with its name under `kind`."""
    return {"kind": sampling.kind, **dataclasses.asdict(sampling)}


def from_dict(data: dict[str, Any]) -> Sampling:
    """Returns the sampler that `to_dict` wrote; raises ValueError for an unknown kind or field."""
    sampling: Sampling = kinds.from_dict("sampling", data, _KINDS)
    return sampling

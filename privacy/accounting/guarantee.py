"""What stands beside every ε of a single release: unit, relation, δ, sampler, and how hard its noise is."""

from __future__ import annotations

import dataclasses
import math

from privacy.accounting import costs
from privacy.accounting.costs import Cost
from privacy.noise.randomness import Randomness
from privacy.sampling import Relation

EXACT = "exact integers from the operating system's secure randomness"
SEEDED = "exact integers from a SEED: not secure, for tests only"


def hardness(source: Randomness) -> str:
    """Of exact noise from `source`, in words."""
    return EXACT if source.is_secure else SEEDED


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """The privacy of one release.

    Attributes:
      mechanism: what was done, in words.
      costs: what it costs, for an account over several releases.
      relation: the neighbouring relation that it holds for.
      delta: δ that ε is stated at; 0 for pure differential privacy.
      noise: where the noise came from and how hard it is.
      sampler: whose data went in.
      unit: whose data is protected.
    """

    mechanism: str
    costs: tuple[Cost, ...]
    relation: Relation
    delta: float
    noise: str
    sampler: str = "everybody, once"
    unit: str = "record"

    def __post_init__(self) -> None:
        sampled = any(isinstance(cost, costs.Gaussian) and cost.sampling_probability < 1 for cost in self.costs)
        if sampled and self.relation != "add-or-remove-one":
            raise ValueError(
                f"relation {self.relation!r} has no accounting with Poisson samples: state add-or-remove-one"
            )

    @property
    def epsilon(self) -> float:
        """ε at `delta`."""
        return costs.epsilon(self.costs, self.delta)

    @property
    def rho(self) -> float | None:
        """ρ of zero-concentrated differential privacy (Bun and Steinke 2016, arXiv:1605.02065): 1 / (2 z²) for a
        Gaussian of everybody's data, ε² / 2 for a pure release, and their sum; None where samples are among them.
        """
        found = 0.0
        for cost in self.costs:
            match cost:
                case costs.Gaussian(sampling_probability=1.0):
                    found += cost.count / (2 * cost.noise_multiplier**2)
                case costs.Pure():
                    found += cost.epsilon**2 / 2
                case _:
                    return None
        return found

    def __str__(self) -> str:
        at = ""
        if self.delta:
            at = f" at delta {self.delta:.3g}" + (
                "" if self.rho is None else f" (rho {format_epsilon(self.rho)} of zCDP)"
            )
        return (
            f"epsilon {format_epsilon(self.epsilon)}{at}; unit {self.unit}, {self.relation}; sampler: {self.sampler}; "
            f"{self.mechanism}; noise: {self.noise}"
        )


def format_epsilon(epsilon: float) -> str:
    """Returns ε for people to read, rounded up so that what is printed holds: three decimals, below 0.01 more.

    It is the one format of ε in reports and on the screen; JSON holds the value itself.
    """
    if epsilon == 0 or not math.isfinite(epsilon):
        return f"{epsilon:g}"
    decimals = max(3, 2 - math.floor(math.log10(epsilon)))
    return f"{math.ceil(epsilon * 10**decimals - 1e-9) / 10**decimals:.{decimals}f}"

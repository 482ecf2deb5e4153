"""Describes the guarantee of a single release: ε with unit, relation, δ, sampler, and where the noise came from.

A guarantee also says whether the release's noise is hardened against floating-point attacks.
"""

from __future__ import annotations

import dataclasses
import decimal
import math

from privacy.accounting import costs
from privacy.accounting.costs import Cost
from privacy.noise.randomness import Randomness
from privacy.noise.training import NOT_STATED
from privacy.sampling import Relation

EXACT = "exact integers from the operating system's secure randomness, hardened against floating-point attacks"
SEEDED = "exact integers from a SEED: not secure, for tests only"


def describe_noise(source: Randomness) -> str:
    """Returns a phrase that says where the random bits of exact noise come from, and whether they are secure."""
    return EXACT if source.is_secure else SEEDED


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """Describes the privacy guarantee of one release.

    Attributes:
      mechanism: what was released and how, in words.
      costs: costs of the release, from which an account over several releases computes ε.
      relation: neighbouring relation that the guarantee holds for.
      delta: δ that ε is stated at, in [0, 1); 0 for pure differential privacy.
      noise: where the noise came from and whether it is hardened against floating-point attacks, in words.
      sampler: which records entered the release, in words.
      unit: what is protected, "record".
    """

    mechanism: str
    costs: tuple[Cost, ...]
    relation: Relation
    delta: float
    noise: str
    sampler: str = "every record, once"
    unit: str = "record"

    def __post_init__(self) -> None:
        sampled = any(isinstance(cost, costs.Gaussian) and cost.sampling_probability < 1 for cost in self.costs)
        if sampled and self.relation != "add-or-remove-one":
            raise ValueError(
                f"relation {self.relation!r} has no accounting under Poisson sampling: give 'add-or-remove-one'"
            )

    @property
    def epsilon(self) -> float:
        """Returns the ε of the release, at `delta`."""
        return costs.epsilon(self.costs, self.delta)

    @property
    def rho(self) -> float | None:
        """Returns the ρ of zero-concentrated differential privacy; None if a cost has Poisson sampling.

        A Gaussian release of all records with noise multiplier z has ρ = 1 / (2 z²), and a pure release has ρ = ε² / 2.
        The ρ of several costs add up.

        Reference: Bun and Steinke 2016 (arXiv:1605.02065).
        """
        total = 0.0
        for cost in self.costs:
            match cost:
                case costs.Gaussian(sampling_probability=1.0):
                    total += cost.count / (2 * cost.noise_multiplier**2)
                case costs.Pure():
                    total += cost.epsilon**2 / 2
                case _:
                    return None
        return total

    def __str__(self) -> str:
        """Describes the guarantee on one line: ε with everything that it depends on."""
        delta = ""
        if self.delta:
            delta = f" at delta {self.delta:.3g}" + (
                "" if self.rho is None else f" (rho {format_epsilon(self.rho)} of zCDP)"
            )
        epsilon = self.epsilon
        if math.isinf(epsilon):
            delta += f" ({NOT_STATED})"
        return (
            f"epsilon {format_epsilon(epsilon)}{delta}; unit {self.unit}, {self.relation}; "
            f"sampler: {self.sampler}; {self.mechanism}; noise: {self.noise}"
        )


def format_epsilon(epsilon: float) -> str:
    """Returns ε as text for people, rounded up so that the printed value still holds.

    The text has three decimals; below 0.1 it has three significant digits. Outside 1e-12 to 1e6 it has three
    significant digits and an exponent. Reports and the screen show ε only in this format; JSON holds the value itself.
    """
    if epsilon == 0 or not math.isfinite(epsilon):
        return f"{epsilon:g}"
    # Round the float's shortest decimal, not its binary value: 0.1 then becomes 0.100 and not 0.101.
    value = decimal.Decimal(repr(float(epsilon)))
    if 1e-12 <= epsilon <= 1e6:
        return f"{value.quantize(decimal.Decimal(10) ** -max(3, 2 - value.adjusted()), decimal.ROUND_CEILING):f}"
    up = float(decimal.Context(prec=3, rounding=decimal.ROUND_CEILING).create_decimal(value))
    return f"{up:.3g}" if math.isfinite(up) else repr(float(epsilon))

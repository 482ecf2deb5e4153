"""Builds the plan that the options of `fedspeak privacy epsilon`, `noise` and `rounds` describe."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from privacy import checks
from privacy.plan import DELTA_EXPONENT, MAX_ROUNDS

if TYPE_CHECKING:
    from privacy import PrivacyPlan
    from privacy.correlated.mechanisms import Mechanism
    from privacy.sampling import Sampling

SIZES = {
    "poisson": ("--cohort-size", "--sampling-probability"),
    "fixed-size": ("--cohort-size",),
    "cyclic": ("--cohort-size", "--cohorts"),
    "cyclic-poisson": ("--sampling-probability",),
    "check-in": ("--cohort-size",),
}
"""Options that give the size of a cohort, by sampler, of which it takes exactly one."""
_NEEDED = {"cyclic-poisson": "--cohorts", "check-in": "--min-separation"}
"""A further option that a sampler needs."""
MECHANISMS = {"tree": "--restart-every", "banded": "--bands", "blt": "--buffers"}
"""The option of each mechanism with correlated noise."""


def build_plan(
    *,
    population: int,
    cohort_size: float | None,
    sampling_probability: float | None,
    cohorts: int | None,
    min_separation: int | None,
    max_participations: int | None,
    sampler: str,
    mechanism: str,
    restart_every: int | None,
    bands: int | None,
    buffers: int | None,
    delta: float | None,
    clip_count_stddev: float | None,
    rounds: int,
    noise_multiplier: float,
) -> PrivacyPlan:
    """Returns the plan that the options describe, with a clip norm of 1, on which ε does not depend.

    Raises:
      ValueError: an option is out of range, or the options do not fit together; the message names it as typed.
    """
    from privacy import AdaptiveClip, FixedClip, PrivacyPlan

    checks.whole("--population", population, 2, "count the clients who could take part")
    if checks.whole("--rounds", rounds, 1, "plan at least one round") > MAX_ROUNDS:
        raise ValueError(f"--rounds must be at most {MAX_ROUNDS:,}, got {rounds:,}: plan fewer")
    fix = "0 switches privacy off, 1 is a usual start"
    if checks.non_negative("--noise-multiplier", noise_multiplier, fix) > 0:
        checks.noise_multiplier(noise_multiplier, fix, "--noise-multiplier")
    if delta is not None:
        checks.between("--delta", delta, 0, 1, f"leave it out for population^{DELTA_EXPONENT}")
    clip: FixedClip | AdaptiveClip = FixedClip(1.0)
    if clip_count_stddev is not None:
        checks.positive("--clip-count-stddev", clip_count_stddev, "leave it out for a fixed clip norm")
        if noise_multiplier > 0 and not clip_count_stddev > noise_multiplier / 2:
            raise ValueError(
                f"--clip-count-stddev {clip_count_stddev:g} leaves none of the privacy budget (noise multiplier "
                f"{noise_multiplier:g}) for the update: give more than {noise_multiplier / 2:g}"
            )
        clip = AdaptiveClip(1.0, count_stddev=clip_count_stddev)
    sizes = {
        "--cohort-size": cohort_size,
        "--sampling-probability": sampling_probability,
        "--cohorts": cohorts,
        "--min-separation": min_separation,
    }
    sampling = _build_sampling(sampler, sizes, max_participations, population)
    plan = PrivacyPlan(sampling, population, rounds, noise_multiplier, clip, delta)
    of_mechanism = {"--restart-every": restart_every, "--bands": bands, "--buffers": buffers}
    for name, value in of_mechanism.items():
        if value is not None and MECHANISMS.get(mechanism) != name:
            raise ValueError(f"{name} {value} has no effect with --mechanism {mechanism}: leave it out")
    if mechanism == "gaussian":
        return plan
    if sampler in ("poisson", "fixed-size"):
        raise ValueError(
            f"--mechanism {mechanism} with --sampler {sampler}, which does not limit a client's rounds: use cyclic, "
            "cyclic-poisson or check-in"
        )
    if noise_multiplier == 0:
        raise ValueError(f"--noise-multiplier 0 with --mechanism {mechanism}, which adds noise: raise it")
    if clip_count_stddev is not None:
        raise ValueError(
            f"--clip-count-stddev with --mechanism {mechanism}, which needs a fixed clip norm: leave it out"
        )
    return dataclasses.replace(plan, mechanism=_build_mechanism(mechanism, of_mechanism, plan))


def _build_sampling(sampler: str, sizes: dict[str, Any], max_participations: int | None, population: int) -> Sampling:
    from privacy import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson

    size, probability, cohorts, separation = (
        sizes[name] for name in ("--cohort-size", "--sampling-probability", "--cohorts", "--min-separation")
    )
    if probability is not None:
        fix = "give cohort size / population"
        checks.between("--sampling-probability", probability, 0, 1, fix, closed_high=True)
    if cohorts is not None and checks.whole("--cohorts", cohorts, 1, "give the number of cohorts") > population:
        raise ValueError(f"--cohorts {cohorts} is larger than --population {population}: give fewer cohorts")
    if separation is not None:
        checks.whole("--min-separation", separation, 1, "1 allows every round")
    needed = _NEEDED.get(sampler)
    if needed and sizes[needed] is None:
        raise ValueError(f"{needed} is missing: {sampler} needs it")
    given = [name for name, value in sizes.items() if value is not None and name != needed]
    if len(given) != 1 or given[0] not in SIZES[sampler]:
        raise ValueError(
            f"{' and '.join(given) or 'no cohort size'} given: {sampler} takes exactly one of "
            f"{', '.join(SIZES[sampler])}"
        )
    if max_participations is not None:
        if sampler != "check-in":
            raise ValueError(f"--max-participations {max_participations} has no effect with {sampler}: leave it out")
        checks.whole("--max-participations", max_participations, 1, "leave it out for what the separation allows")
    if size is not None:
        checks.positive("--cohort-size", size, "give the number of clients per round")
        if size > population:
            raise ValueError(f"--cohort-size {size:g} is larger than --population {population}: give a smaller cohort")
        if sampler in ("fixed-size", "check-in") and size != int(size):
            raise ValueError(f"--cohort-size {size:g} is not an integer: {sampler} cohorts need one")
        if sampler == "cyclic" and size < 1:
            raise ValueError(f"--cohort-size {size} is below 1: a cyclic cohort has at least one client")
        # Rounding the number of cohorts down makes a client's turn come sooner, so that ε is not understated.
        probability, cohorts = size / population, population // size
    if probability is not None and 0 < probability < sys.float_info.min:
        raise ValueError(
            f"{given[0]} {sizes[given[0]]} is too small: the sampling probability must be at least "
            f"{sys.float_info.min:.0e}"
        )
    match sampler:
        case "poisson":
            return Poisson(probability)
        case "fixed-size":
            return FixedSize(int(size))
        case "cyclic":
            return Cyclic(int(cohorts))
        case "cyclic-poisson":
            return CyclicPoisson(int(cohorts), probability)
    return CheckIn(int(size), int(separation), max_participations)


def _build_mechanism(mechanism: str, sizes: dict[str, int | None], plan: PrivacyPlan) -> Mechanism:
    """Returns the mechanism for the plan's rounds and participation limits, with the least error of prefix sums."""
    from experiments.mechanism import choose_mechanism
    from privacy.correlated.factorisation import MAX_HORIZON
    from privacy.correlated.mechanisms import BLT, MAX_BANDS, MAX_BUFFERS, Banded, Tree
    from privacy.correlated.workload import Workload

    largest = {"--restart-every": MAX_ROUNDS, "--bands": MAX_BANDS, "--buffers": MAX_BUFFERS}
    for name, value in sizes.items():
        if value is not None and checks.whole(name, value, 1, "leave it out for the default") > largest[name]:
            raise ValueError(f"{name} must be at most {largest[name]:,}, got {value:,}: lower it")
    most = {"tree": Tree.max_rounds, "banded": Banded.max_rounds, "blt": BLT.max_rounds}[mechanism]
    if plan.rounds > most:
        raise ValueError(f"--rounds {plan.rounds} with --mechanism {mechanism}: give at most {most:,}")
    workload = Workload(min(plan.rounds, MAX_HORIZON))
    return choose_mechanism(mechanism, workload, plan.participation, *sizes.values())


@contextlib.contextmanager
def naming_options(*names: str) -> Iterator[None]:
    """Makes the accounting's errors, raised inside `with`, name these arguments as the user typed them."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name in names:
            message = re.sub(rf"\b{name} (?=[0-9])", f"--{name.replace('_', '-')} ", message)
        raise ValueError(message) from None

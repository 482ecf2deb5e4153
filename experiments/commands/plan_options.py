"""Defines the options of `fedspeak privacy epsilon`, `noise` and `rounds`, and builds the plan that they describe."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from experiments.commands.renamed import renamed
from privacy.plan import DELTA_EXPONENT, MAX_ROUNDS

if TYPE_CHECKING:
    from privacy import PrivacyPlan

_RENAMED = {
    "--clients": "--population",
    "--cohort": "--cohort-size",
    "--rate": "--sampling-probability",
    "--noise": "--noise-multiplier",
}


def add_plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `epsilon`, `noise` and `rounds` share."""
    options = [
        click.option(
            "--population", type=int, required=True, metavar="N", help="Number of clients who could take part."
        ),
        click.option(
            "--cohort-size",
            type=float,
            metavar="K",
            help="Number of clients per round (with poisson: the mean number).",
        ),
        click.option(
            "--sampling-probability",
            type=float,
            metavar="Q",
            help="Probability with which each client joins each round (poisson), instead of --cohort-size.",
        ),
        click.option(
            "--cohorts",
            type=int,
            metavar="B",
            help="Number of cohorts that take turns (cyclic), instead of --cohort-size.",
        ),
        click.option(
            "--sampler",
            type=click.Choice(["poisson", "fixed-size", "cyclic"]),
            default="poisson",
            show_default=True,
            help="How cohorts are drawn.",
        ),
        click.option("--delta", type=float, help=f"δ of the guarantee. [default: population^{DELTA_EXPONENT}]"),
        click.option(
            "--clip-count-stddev",
            type=float,
            metavar="S",
            help="Standard deviation of the noise on the count of adaptive clipping; shows how the noise is split.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    for old, new in _RENAMED.items():
        options.append(renamed(old, new))
    for option in reversed(options):
        command = option(command)
    return command


ROUNDS = click.option("--rounds", type=int, required=True, metavar="T", help="Number of training rounds.")
NOISE = click.option(
    "--noise-multiplier", type=float, required=True, metavar="Z", help="Standard deviation of the noise / clip norm."
)
EPSILON = click.option(
    "--epsilon", "target", type=float, required=True, metavar="E", help="Largest epsilon that the run may reach."
)


def build_plan(
    *,
    population: int,
    cohort_size: float | None,
    sampling_probability: float | None,
    cohorts: int | None,
    sampler: str,
    delta: float | None,
    clip_count_stddev: float | None,
    rounds: int,
    noise_multiplier: float,
) -> PrivacyPlan:
    """Returns the plan that the options describe, with a clip norm of 1, on which ε does not depend.

    Raises:
      ValueError: an option is out of range, or the options do not fit together; the message names it as typed.
    """
    from privacy import AdaptiveClip, Cyclic, FixedClip, FixedSize, Poisson, PrivacyPlan, checks
    from privacy.sampling import Sampling

    checks.whole("--population", population, 2, "count the clients who could take part")
    if checks.whole("--rounds", rounds, 1, "plan at least one round") > MAX_ROUNDS:
        raise ValueError(f"--rounds must be at most {MAX_ROUNDS:,}, got {rounds:,}: plan fewer")
    fix = "0 switches privacy off, 1 is a usual start"
    if checks.non_negative("--noise-multiplier", noise_multiplier, fix) > 0:
        checks.noise_multiplier(noise_multiplier, fix, "--noise-multiplier")
    if delta is not None:
        checks.between("--delta", delta, 0, 1, f"leave it out for population^{DELTA_EXPONENT}")
    if clip_count_stddev is not None:
        checks.positive("--clip-count-stddev", clip_count_stddev, "leave it out for a fixed clip norm")
        if noise_multiplier > 0 and not clip_count_stddev > noise_multiplier / 2:
            raise ValueError(
                f"--clip-count-stddev {clip_count_stddev:g} leaves none of the privacy budget (noise multiplier "
                f"{noise_multiplier:g}) for the update: give more than {noise_multiplier / 2:g}"
            )
    if sampling_probability is not None:
        checks.between(
            "--sampling-probability", sampling_probability, 0, 1, "give cohort size / population", closed_high=True
        )
    if cohorts is not None and checks.whole("--cohorts", cohorts, 1, "give the number of cohorts") > population:
        raise ValueError(f"--cohorts {cohorts} is larger than --population {population}: give fewer cohorts")
    sizes = {"--cohort-size": cohort_size, "--sampling-probability": sampling_probability, "--cohorts": cohorts}
    allowed = {
        "poisson": ("--cohort-size", "--sampling-probability"),
        "fixed-size": ("--cohort-size",),
        "cyclic": ("--cohort-size", "--cohorts"),
    }[sampler]
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != 1 or given[0] not in allowed:
        raise ValueError(
            f"{' and '.join(given) or 'no cohort size'} given: {sampler} takes exactly one of {', '.join(allowed)}"
        )
    if cohort_size is not None:
        checks.positive("--cohort-size", cohort_size, "give the number of clients per round")
        if cohort_size > population:
            raise ValueError(
                f"--cohort-size {cohort_size:g} is larger than --population {population}: give a smaller cohort"
            )
        if sampler == "fixed-size" and cohort_size != int(cohort_size):
            raise ValueError(f"--cohort-size {cohort_size:g} is not an integer: fixed-size cohorts need one")
        if sampler == "cyclic" and cohort_size < 1:
            raise ValueError(f"--cohort-size {cohort_size} is below 1: a cyclic cohort has at least one client")
        # Rounding the number of cohorts down makes a client's turn come sooner, so that ε is not understated.
        sampling_probability = cohort_size / population
        cohorts = int(population // cohort_size) if sampler == "cyclic" else None
    if sampling_probability is not None and 0 < sampling_probability < sys.float_info.min:
        raise ValueError(
            f"{given[0]} {sizes[given[0]]} is too small: the sampling probability must be at least "
            f"{sys.float_info.min:.0e}"
        )
    sampling: Sampling
    if sampler == "poisson":
        assert sampling_probability is not None
        sampling = Poisson(sampling_probability)
    elif sampler == "fixed-size":
        assert cohort_size is not None
        sampling = FixedSize(int(cohort_size))
    else:
        assert cohorts is not None
        sampling = Cyclic(cohorts)
    clip: FixedClip | AdaptiveClip = FixedClip(1.0)
    if clip_count_stddev is not None:
        clip = AdaptiveClip(1.0, count_stddev=clip_count_stddev)
    return PrivacyPlan(sampling, population, rounds, noise_multiplier, clip, delta)


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

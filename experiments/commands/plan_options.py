"""Defines the options of `fedspeak privacy epsilon`, `noise` and `rounds`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from experiments.commands.plan_of_options import MECHANISMS, SIZES
from experiments.commands.renamed import renamed
from privacy.plan import DELTA_EXPONENT

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
            help="Number of cohorts that take turns (cyclic, cyclic-poisson), instead of --cohort-size.",
        ),
        click.option(
            "--min-separation",
            type=int,
            metavar="B",
            help="Smallest difference of the numbers of two rounds of one client (check-in).",
        ),
        click.option(
            "--max-participations",
            type=int,
            metavar="K",
            help="Maximum number of rounds of one client (check-in). [default: what the separation allows]",
        ),
        click.option(
            "--sampler",
            type=click.Choice(list(SIZES)),
            default="poisson",
            show_default=True,
            help="How cohorts are drawn.",
        ),
        click.option(
            "--mechanism",
            type=click.Choice(["gaussian", *MECHANISMS]),
            default="gaussian",
            show_default=True,
            help="Independent noise in each round, or correlated noise (DP-FTRL).",
        ),
        click.option("--restart-every", type=int, metavar="T", help="Rounds of each tree. [default: one tree for all]"),
        click.option("--bands", type=int, metavar="N", help="Number of bands (banded). [default: 16]"),
        click.option("--buffers", type=int, metavar="N", help="Maximum number of buffers (blt). [default: 4]"),
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

"""Defines `fedspeak reproduce`, which reruns a study."""

import click

from experiments.reproduce import (
    block_verification,
    coupling,
    dp_mean,
    dpsgd_f,
    drafters,
    invariance,
    noise_seeds,
    spectr,
)


@click.group()
def reproduce() -> None:
    """Rerun a study and write its table and plot."""


for command in (
    block_verification.block_verification,
    coupling.coupling,
    dp_mean.dp_mean,
    dpsgd_f.dpsgd_f,
    drafters.drafters,
    invariance.invariance,
    noise_seeds.noise_seeds,
    spectr.spectr,
):
    reproduce.add_command(command)

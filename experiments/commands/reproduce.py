"""Defines `fedspeak reproduce`, which reruns a study."""

import click

from experiments.reproduce import (
    alignment,
    best_of_n,
    block_verification,
    blockwise,
    coupling,
    cvar_fairness,
    dp_ftrl,
    dp_mean,
    dpsgd_f,
    drafters,
    inference_time,
    invariance,
    noise_seeds,
    si,
    spectr,
)


@click.group()
def reproduce() -> None:
    """Rerun a study and write its table and plot."""


for command in (
    alignment.alignment,
    best_of_n.best_of_n,
    block_verification.block_verification,
    blockwise.blockwise,
    coupling.coupling,
    cvar_fairness.cvar_fairness,
    dp_ftrl.dp_ftrl,
    dp_mean.dp_mean,
    dpsgd_f.dpsgd_f,
    drafters.drafters,
    inference_time.inference_time,
    invariance.invariance,
    noise_seeds.noise_seeds,
    si.si,
    spectr.spectr,
):
    reproduce.add_command(command)

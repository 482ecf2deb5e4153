"""Studies: one module each, `fedspeak reproduce NAME`. A study writes a folder with metrics.json, table and plot."""

import click

from experiments.reproduce.noise_seeds import noise_seeds


@click.group()
def reproduce() -> None:
    """Repeat a study and write its table and plot."""


reproduce.add_command(noise_seeds)

"""Defines `fedspeak bench`, the group of the benchmarks; each benchmark is a module in `experiments.bench`."""

import click

from experiments.bench.cohort_size import cohort_size
from experiments.bench.decoding import decoding
from experiments.bench.dp_step import dp_step
from experiments.bench.exact_noise import exact_noise
from experiments.bench.k_seq import k_seq
from experiments.bench.kernels import kernels
from experiments.bench.population import population
from experiments.bench.pretrained import pretrained
from experiments.bench.samplers import samplers
from experiments.bench.simulation import simulation
from experiments.bench.verifiers import verifiers


@click.group()
def bench() -> None:
    """Time fedspeak beside other libraries: rounds, private steps, imported models, kernels, populations, decoding."""


_COMMANDS = (
    simulation,
    population,
    cohort_size,
    kernels,
    dp_step,
    exact_noise,
    pretrained,
    verifiers,
    k_seq,
    decoding,
    samplers,
)
for command in _COMMANDS:
    bench.add_command(command)

"""`fedspeak bench`: this kit beside other frameworks."""

from __future__ import annotations

import json
from pathlib import Path

import click

from experiments import extras
from experiments.bench.cohort_size import cohort_size
from experiments.bench.dp_step import dp_step
from experiments.bench.exact_noise import exact_noise
from experiments.bench.kernels import kernels
from experiments.bench.population import population
from experiments.display import ConsoleDisplay
from privacy.json_values import plain

OURS = "fedspeak"
# The first of them is the reference for the weights: the law that all must follow.
_PEERS = {
    "stock-tff": ("stock_tff", None, 1),
    OURS: ("fedspeak", None, 1),
    "pfl-research": ("pfl_research", "pfl-research", 1),
    "pfl-research-2": ("pfl_research", "pfl-research", 2),
    "flower": ("flower", "flower", 2),
    "fedjax": ("fedjax", "fedjax", 1),
    "pytorch": ("pytorch", "pfl-research", 1),
}
_WORKLOADS = ("lstm", "si-cifg-4.7m", "cnn", "logistic", "tiny-recurrent")
CASES = tuple(workload + suffix for workload in _WORKLOADS for suffix in ("", "-dp"))


@click.group()
def bench() -> None:
    """Time this kit beside others, in rounds and in private steps, its kernels beside their floor, big populations."""


for command in (population, cohort_size, kernels, dp_step, exact_noise):
    bench.add_command(command)


@bench.command()
@click.option("--case", "cases", type=click.Choice(CASES), multiple=True, help="Only this one; may be repeated.")
@click.option("--peer", "names", type=click.Choice(list(_PEERS)), multiple=True, help="Only this one; may be repeated.")
@click.option("--rounds", type=click.IntRange(3, 50), default=6, show_default=True, help="Of each process.")
@click.option("--repetitions", type=click.IntRange(1, 100), default=5, show_default=True, help="Processes a peer.")
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds of one process.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True, help="Folder."
)
def simulation(
    cases: tuple[str, ...], names: tuple[str, ...], rounds: int, repetitions: int, timeout: int, output: Path
) -> None:
    """Rounds of federated training: this kit, stock TFF, pfl-research, Flower, FedJAX, a bare PyTorch loop.

    All do the same work; their weights are compared. The table goes to OUTPUT/table.md and standard output, all figures
    to OUTPUT/results.json. The peers' environments: `make bench-peers`.
    """
    extras.require("federated")
    from experiments.bench import measure, table

    display = ConsoleDisplay()
    peers = [measure.Peer(name, *_PEERS[name]) for name in _PEERS if not names or name in names]
    output.mkdir(parents=True, exist_ok=True)
    results, tables = [], [f"Machine: {table.machine()}. {rounds} rounds, {repetitions} repetitions.\n"]
    failed = []
    for name in cases or CASES:
        case = measure.measure(
            name.removesuffix("-dp"),
            name.endswith("-dp"),
            peers,
            rounds=rounds,
            repetitions=repetitions,
            folder=output.resolve(),
            timeout=timeout,
            note=display.note,
        )
        results.append(case.to_dict())
        failed += [f"{name}: {run.peer}: {run.problem}" for run in case.failed()]
        tables.append(table.case_table(case, peers, OURS))
        # After each case: what is measured is kept when a later one is interrupted.
        document = plain({"machine": table.machine(), "cases": results})
        (output / "results.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        (output / "table.md").write_text("\n".join(tables))
    click.echo("\n".join(tables))
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {'; '.join(failed)}")

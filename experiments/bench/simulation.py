"""Times rounds of federated training in fedspeak and in other frameworks: the command `fedspeak bench simulation`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from experiments import extras, options
from experiments.commands.renamed import renamed
from experiments.display import ConsoleDisplay
from privacy.json_values import plain

OURS = "fedspeak"
# Maps each peer to the arguments of `measure.Peer` after its name. The weights of the first peer that runs are the
# reference that the others' weights are compared with.
_PEERS = {
    "stock-tff": ("stock_tff", None, 1),
    OURS: ("fedspeak", None, 1),
    "pfl-research": ("pfl_research", "pfl-research", 1),
    "pfl-research-2": ("pfl_research", "pfl-research", 2),
    "flower": ("flower", "flower", 2),
    "fedjax": ("fedjax", "fedjax", 1),
    "pytorch": ("pytorch", "pfl-research", 1),
}
_WORKLOADS = ("lstm", "si-cifg-4.7m", "transformer-4m", "cnn", "logistic", "tiny-recurrent")
CASES = tuple(workload + suffix for workload in _WORKLOADS for suffix in ("", "-dp"))


@click.command()
@click.option(
    "--case", "cases", type=click.Choice(CASES), multiple=True, help="Case to run; may be repeated. By default, all."
)
@click.option(
    "--peer",
    "names",
    type=click.Choice(list(_PEERS)),
    multiple=True,
    help="Framework to run; may be repeated. By default, all.",
)
@click.option("--rounds", type=click.IntRange(3, 50), default=6, show_default=True, help="Rounds per process.")
@click.option(
    "--repetitions", type=click.IntRange(1, 100), default=5, show_default=True, help="Processes per framework and case."
)
@options.timeout()
@options.output("runs/bench")
@renamed("--out", "--output")
def simulation(
    cases: tuple[str, ...], names: tuple[str, ...], rounds: int, repetitions: int, timeout: int, output: Path
) -> None:
    """Time rounds of federated training: fedspeak, stock TFF, pfl-research, Flower, FedJAX, a bare PyTorch loop.

    All frameworks do the same work; their weights are compared. The table goes to OUTPUT/table.md and to standard
    output, all measurements to OUTPUT/results.json. `make bench-peers` installs the other frameworks.
    """
    extras.require("federated")
    from experiments.bench import measure, table

    display = ConsoleDisplay()
    peers = [measure.Peer(name, *_PEERS[name]) for name in _PEERS if not names or name in names]
    output.mkdir(parents=True, exist_ok=True)
    about = f"Machine: {table.machine()}. {rounds} rounds, {repetitions} repetitions.\n"
    measured: list[measure.Case] = []
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
        measured.append(case)
        failed += [f"{name}: {run.peer}: {run.problem}" for run in case.failed()]
        # Written after each case, so that an interruption loses no finished case.
        document = plain({"machine": table.machine(), "cases": [case.to_dict() for case in measured]})
        (output / "results.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        tables = [table.case_table(case, peers, OURS) for case in measured]
        text = "\n".join([about, table.overview(measured, peers, OURS), *tables])
        (output / "table.md").write_text(text)
    click.echo(text)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {'; '.join(failed)}")

"""How much of a private run's result is luck: its rounds again, with other noise and other cohorts."""

import dataclasses
import shutil
from pathlib import Path

import click

from experiments import cli
from experiments.display import ConsoleDisplay
from experiments.runs import RunFolder, write_json
from experiments.versions import versions
from privacy import extras


@click.command("noise-seeds")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=2), help="How many repetitions.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write; by default RUN-noise-seeds.")
def noise_seeds(run: Path, seeds: int, output: Path | None) -> None:
    """Repeat the rounds of a finished RUN from its public model with fixed keys 1, 2, … and evaluate each.

    Interrupted, it goes on where it stopped. Each repetition is a run of its own in the output folder.
    """
    extras.require("federated")
    from experiments import data, plots, results, training

    source, folder, show = RunFolder(run), output or run.with_name(f"{run.name}-noise-seeds"), ConsoleDisplay()
    config = source.read_config()
    folder.mkdir(parents=True, exist_ok=True)
    prepared = data.prepare(config, source.vocabulary)
    evaluations = []
    for seed in range(1, seeds + 1):
        repeated = RunFolder(folder / f"seed-{seed}")
        if not repeated.config.exists():
            repeated.create(dataclasses.replace(config, run=dataclasses.replace(config.run, fixed_key=seed)))
            shutil.copy(source.vocabulary, repeated.vocabulary)
            shutil.copy(source.public_weights, repeated.public_weights)
        if not repeated.weights.exists():
            show.note(f"repetition {seed} of {seeds}")
            training.train(repeated, cli.command_line(), show)
        evaluations.append(results.test_rows(repeated, prepared))
    write_json(
        folder / "metrics.json",
        {
            "command": cli.command_line(),
            "seeds": list(range(1, seeds + 1)),
            "versions": versions(),
            "rows": [[row.to_dict() for row in rows] for rows in evaluations],
        },
    )
    gains = [row.gain for rows in evaluations for row in rows if row.name == results.PUBLIC and row.gain is not None]
    if gains:
        plots.repetitions(folder / "plot", "gain over the public model, nats a token", gains)
    table = results.seeds_table(evaluations)
    (folder / "table.md").write_text(table)
    click.echo(table)

"""Defines `fedspeak reproduce noise-seeds`: how much a private run's result varies with its noise and its cohorts."""

from pathlib import Path

import click
import msgspec

from experiments import extras
from experiments.config import Config
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line, versions
from experiments.runs import RunFolder, write_json
from privacy.files import make_private_folder, write_private


@click.command("noise-seeds")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=2), help="Number of repetitions.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    show_default="RUN-noise-seeds",
    help="Folder for the repetitions, the table and the plot.",
)
def noise_seeds(run: Path, seeds: int, output: Path | None) -> None:
    """Repeat the rounds of a finished RUN with other noise and other cohorts, and evaluate each repetition.

    The repetitions start from the run's public model and have the fixed keys 1, 2, … Each is a run of its own in the
    output folder. An interrupted study continues where it stopped when the command is given again.
    """
    extras.require("federated")
    from experiments import data, plots, results, training

    source, folder, show = RunFolder(run), output or run.with_name(f"{run.name}-noise-seeds"), ConsoleDisplay()
    config = source.read_config()
    source.require_trained()
    make_private_folder(folder)
    prepared = data.prepare(config, source.vocabulary)
    evaluations = []
    for seed in range(1, seeds + 1):
        repeated = RunFolder(folder / f"seed-{seed}")
        _prepare_repetition(
            repeated, source, msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, fixed_key=seed))
        )
        if not repeated.weights.exists():
            show.note(f"repetition {seed} of {seeds}")
            training.train(repeated, command_line(), show)
        evaluations.append(results.test_rows(repeated, prepared))
    write_json(
        folder / "metrics.json",
        {
            "command": command_line(),
            "seeds": list(range(1, seeds + 1)),
            "versions": versions(),
            "rows": [[row.to_dict() for row in rows] for rows in evaluations],
        },
    )
    gains = [row.gain for rows in evaluations for row in rows if row.name == results.PUBLIC and row.gain is not None]
    if gains:
        plots.repetitions(folder / "plot", "gain over the public model, nats per token", gains)
    table = results.seeds_table(evaluations)
    write_private(folder / "table.md", table.encode())
    click.echo(table)


def _prepare_repetition(repeated: RunFolder, source: RunFolder, config: Config) -> None:
    """Prepares the folder of a repetition of `source` with the given config; files that it has already are kept.

    Raises:
      ValueError: the folder holds a repetition of another run.
    """
    if not repeated.config.exists():
        repeated.create(config)
    same = repeated.read_config() == config
    for name in (source.vocabulary.name, source.public_weights.name):
        content, copy = (source.path / name).read_bytes(), repeated.path / name
        if not copy.exists():
            write_private(copy, content)
        same = same and copy.read_bytes() == content
    if not same:
        raise ValueError(
            f"{repeated.path} is a repetition of another run, or {source.path} has changed since: delete "
            f"{repeated.path.parent}, or give another --output"
        )

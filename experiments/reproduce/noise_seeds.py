"""How much of a private run's result is luck: its rounds again, with other noise and other cohorts."""

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
    source.require_trained()
    make_private_folder(folder)
    prepared = data.prepare(config, source.vocabulary)
    evaluations = []
    for seed in range(1, seeds + 1):
        repeated = RunFolder(folder / f"seed-{seed}")
        _begin(
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
        plots.repetitions(folder / "plot", "gain over the public model, nats a token", gains)
    table = results.seeds_table(evaluations)
    write_private(folder / "table.md", table.encode())
    click.echo(table)


def _begin(repeated: RunFolder, source: RunFolder, config: Config) -> None:
    """A repetition of `source` under `config`, begun where it was not.

    Raises:
      ValueError: the folder holds one of another run.
    """
    if not repeated.config.exists():
        repeated.create(config)
    same = repeated.read_config() == config
    for name in (source.vocabulary.name, source.public_weights.name):
        wanted, copy = (source.path / name).read_bytes(), repeated.path / name
        if not copy.exists():
            write_private(copy, wanted)
        same = same and copy.read_bytes() == wanted
    if not same:
        raise ValueError(
            f"{repeated.path} is a repetition of another run than {source.path} is now: delete {repeated.path.parent}, "
            "or give another --output"
        )

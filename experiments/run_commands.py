"""Commands on runs: train, evaluate, report, data."""

from datetime import datetime
from pathlib import Path

import click

from experiments import cli
from experiments import config as configs
from experiments.display import ConsoleDisplay
from experiments.runs import RunFolder

_SETTINGS = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a key of the config; repeatable.",
)


@click.command()
@click.argument("config", required=False)
@_SETTINGS
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the run; by default runs/CONFIG-DATE.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
def train(config: str | None, overrides: tuple[str, ...], output: Path | None, resume: Path | None) -> None:
    """Train a model on clients' text.

    CONFIG is a TOML file, or the name of a shipped one (demo, scratch, long).
    """
    if (config is None) == (resume is None):
        raise click.UsageError("give a config to start a run, or --resume RUN to go on with one")
    show = ConsoleDisplay()
    if resume is not None:
        if overrides or output:
            raise click.UsageError(
                "--resume goes on with the run's own config in its own folder: drop --set and --output"
            )
        run = RunFolder(resume)
        run.read_config()
    else:
        assert config is not None
        settings = configs.load(config, overrides)
        name = f"{Path(config).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        run = RunFolder(output or Path("runs") / name)
        run.create(settings)
    from experiments import results, training

    training.train(run, cli.command_line(), show)
    click.echo(results.evaluate(run))
    for path in results.write_reports(run):
        click.echo(str(path))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def evaluate(run: Path) -> None:
    """Evaluate a trained run on its test clients, beside the baselines."""
    from experiments import results

    click.echo(results.evaluate(RunFolder(run)))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write the privacy report of a run from its ledger: report.* for the operator, report-release.* to give away."""
    from experiments import results

    for path in results.write_reports(RunFolder(run)):
        click.echo(str(path))


@click.command()
@click.argument("config")
@_SETTINGS
def data(config: str, overrides: tuple[str, ...]) -> None:
    """Build the token store of a config (re-used by its runs) and say what is in it."""
    from experiments.data import describe, prepare

    settings = configs.load(config, overrides)
    click.echo(describe(prepare(settings, Path("runs") / "data", None)))

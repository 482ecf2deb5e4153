"""Commands on runs: train, evaluate, report, data."""

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from experiments import config_file, extras
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line
from experiments.runs import RunFolder
from privacy.files import FULL

_STRICT = click.option("--strict", is_flag=True, help="Refuse the first bad row of the data (data.strict=true).")
_SETTINGS = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a key of the config (VALUE none takes it out); repeatable.",
)


@click.command()
@click.argument("config", required=False)
@_SETTINGS
@_STRICT
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the run; by default runs/CONFIG-DATE.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
@click.option(
    "--set-aside-metrics",
    is_flag=True,
    help="With --resume: go on though rows of metrics.jsonl are lost or damaged; the file is kept beside it.",
)
@click.option("--workers", metavar="HOST:PORT,…", help="Train the clients on other hosts, which run fedspeak worker.")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --workers: the driver's half of what fedspeak certificates made.",
)
@click.option("--insecure-network", is_flag=True, help="With --workers: dial them WITHOUT authentication.")
def train(
    config: str | None,
    overrides: tuple[str, ...],
    strict: bool,
    output: Path | None,
    resume: Path | None,
    set_aside_metrics: bool,
    workers: str | None,
    certificates: Path | None,
    insecure_network: bool,
) -> None:
    """Train a model on clients' text.

    CONFIG is a TOML file, or the name of a shipped one (demo, scratch, long).
    """
    extras.require("federated")
    if (config is None) == (resume is None):
        raise click.UsageError("give a config to start a run, or --resume RUN to go on with one")
    show, is_new_folder = ConsoleDisplay(), False
    place = _place(workers, certificates, insecure_network)
    if resume is not None:
        if overrides or strict or output:
            raise click.UsageError(
                "--resume goes on with the run's own config in its folder: drop --set, --strict, --output"
            )
        run = RunFolder(resume)
        run.read_config()
        if set_aside_metrics:
            _set_metrics_aside(run, show)
    else:
        if set_aside_metrics:
            raise click.UsageError("--set-aside-metrics belongs to --resume: a new run has no metrics to lose")
        from experiments.data import absolute

        assert config is not None
        settings = absolute(config_file.load(config, _with_strict(overrides, strict)))
        run = RunFolder(output or Path("runs") / f"{Path(config).stem}-{datetime.now():%Y%m%d-%H%M%S}")
        is_new_folder = run.create(settings)
    from experiments import results, training

    try:
        with contextlib.ExitStack() as stack:
            hosts = None
            if place is not None and not run.weights.exists():
                show.note(f"connecting to {len(place.addresses)} worker{'s' * (len(place.addresses) > 1)} …")
                hosts = stack.enter_context(place.connected())
            training.train(run, command_line(), show, hosts)
    except KeyboardInterrupt:
        click.echo(f"go on with: fedspeak train --resume {run.path}", err=True)
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if resume is None and not full:
            with contextlib.suppress(OSError):
                run.discard(is_new_folder)  # a setting to correct, not a run to resume
        raise
    show.note("evaluating on the test clients and writing the reports …")
    click.echo(results.evaluate(run))
    for path in results.write_reports(run, show.note):
        click.echo(str(path))


def _set_metrics_aside(run: RunFolder, show: ConsoleDisplay) -> None:
    from fl.rounds import RoundLog, set_aside_metrics

    if set_aside_metrics(RoundLog(run.path)):
        show.note(f"{run.metrics} begins with the newest round now; what was left of it is kept beside it")
    else:
        show.note(f"{run.metrics} is in order: nothing is set aside")


def _place(workers: str | None, certificates: Path | None, insecure_network: bool) -> Any:
    """The `fl.runtime.hosts.Workers` of the options; None: this machine alone."""
    if workers is None:
        if certificates is not None or insecure_network:
            raise click.UsageError("--certificates and --insecure-network belong to --workers: give it, or drop them")
        return None
    if certificates is not None and insecure_network:
        raise click.UsageError("--certificates and --insecure-network contradict each other: drop one")
    from fl.runtime.hosts import Workers

    if insecure_network:
        click.echo("WARNING: clients' text goes to the workers unencrypted, and to whoever answers there", err=True)
    try:
        place = Workers.parse(workers, certificates, insecure_network)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--workers") from None
    if certificates is None and not insecure_network:
        click.echo(
            "WARNING: any account of this machine reaches a worker through an ssh tunnel's port here, and can take "
            "that port once ssh ends: use --certificates on a shared machine",
            err=True,
        )
    return place


def _with_strict(overrides: tuple[str, ...], strict: bool) -> tuple[str, ...]:
    return (*overrides, "data.strict=true") if strict else overrides


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def evaluate(run: Path) -> None:
    """Evaluate a trained run on its test clients, beside the baselines."""
    extras.require("models")
    from experiments import results

    click.echo(results.evaluate(RunFolder(run)))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write the privacy report of a run from its ledger: report.* for the operator, report-release.* to give away.

    RUN may also be the ledger file of a budget: then the report is on its releases, and stands beside it.
    """
    from experiments import results

    if run.is_file():
        from privacy import report as reports
        from privacy.budget import Releases

        for path in reports.of_releases(Releases.read(run)).write(run.parent):
            click.echo(str(path))
        return
    for path in results.write_reports(RunFolder(run), ConsoleDisplay().note):
        click.echo(str(path))


@click.command()
@click.argument("config")
@_SETTINGS
@_STRICT
def data(config: str, overrides: tuple[str, ...], strict: bool) -> None:
    """Build the token store of a config (re-used by its runs) and say what is in it."""
    extras.require("models")
    from experiments.data import describe, prepare

    settings = config_file.load(config, _with_strict(overrides, strict))
    click.echo(describe(prepare(settings, None)))

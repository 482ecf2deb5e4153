"""Defines the commands on runs: `fedspeak train`, `evaluate`, `report` and `data`."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from experiments import config_file, extras
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line
from experiments.runs import RunFolder
from privacy.files import FULL

_STRICT = click.option("--strict", is_flag=True, help="Stop at the first bad row of the data (data.strict=true).")
SETTINGS = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a key of the config; VALUE none removes the key. May be repeated.",
)


@click.command()
@click.argument("config", required=False)
@SETTINGS
@_STRICT
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the new run.", show_default="runs/CONFIG-DATE"
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", help="Folder of an interrupted run to resume."
)
@click.option(
    "--set-aside-metrics",
    is_flag=True,
    help="With --resume: continue although rows of metrics.jsonl are lost or damaged; the damaged file is kept.",
)
@click.option("--workers", metavar="HOST:PORT,…", help="Other hosts that train the clients; each runs fedspeak worker.")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --workers: folder with the driver's certificates, as fedspeak certificates made it.",
)
@click.option("--insecure-network", is_flag=True, help="With --workers: connect WITHOUT encryption or authentication.")
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

    CONFIG is a TOML file, or the name of a shipped one (demo, production, scratch, long).
    """
    extras.require("federated")
    if (config is None) == (resume is None):
        raise click.UsageError("give either a config to start a run, or --resume RUN to continue one")
    show, is_new_folder = ConsoleDisplay(), False
    remote_workers = _parse_workers(workers, certificates, insecure_network)
    if resume is not None:
        if overrides or strict or output:
            raise click.UsageError(
                "--resume takes the config and the folder from the run itself: drop --set, --strict and --output"
            )
        run = RunFolder(resume)
        run.read_config()
        if set_aside_metrics:
            _set_metrics_aside(run, show)
    else:
        if set_aside_metrics:
            raise click.UsageError("--set-aside-metrics needs --resume: a new run has no metrics yet")
        from experiments.data import absolute

        assert config is not None
        settings = absolute(config_file.load(config, _with_strict(overrides, strict)))
        run = RunFolder(output or Path("runs") / f"{Path(config).stem}-{datetime.now():%Y%m%d-%H%M%S}")
        is_new_folder = run.create(settings)
    from experiments import results, training

    with leaving_resumable(run, "train", resume is None, is_new_folder), contextlib.ExitStack() as stack:
        stack.enter_context(_strict_named_as_typed(strict))
        hosts = None
        if remote_workers is not None and not run.weights.exists():
            count = len(remote_workers.addresses)
            show.note(f"connecting to {count} worker{'s' * (count > 1)} …")
            hosts = stack.enter_context(remote_workers.connected())
        training.train(run, command_line(), show, hosts)
    show.note("evaluating on the test clients and writing the reports …")
    click.echo(results.evaluate(run))
    for path in results.write_reports(run, show.note):
        click.echo(str(path))


@contextlib.contextmanager
def leaving_resumable(run: RunFolder, command: str, is_new: bool, is_new_folder: bool) -> Iterator[None]:
    """Says how to resume a training that is interrupted inside `with`, and leaves nothing of one that did not begin.

    Args:
      run: folder of the run.
      command: command that resumes it.
      is_new: whether the run was made by this command.
      is_new_folder: whether its folder was.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"resume with: fedspeak {command} --resume {run.path}", err=True)
        raise
    except Exception as error:
        disk_is_full = isinstance(error, OSError) and error.errno in FULL
        if is_new and not disk_is_full:
            # If nothing was trained, the user corrects a setting and runs the command again: leave no folder behind.
            with contextlib.suppress(OSError):
                run.discard(is_new_folder)
        raise


def _set_metrics_aside(run: RunFolder, show: ConsoleDisplay) -> None:
    from fl.rounds import RoundLog, set_aside_metrics

    if set_aside_metrics(RoundLog(run.path)):
        show.note(
            f"{run.metrics} now holds only the newest round, and later rounds are appended to it; the previous file is "
            "kept in the same folder"
        )
    else:
        show.note(f"{run.metrics} is not damaged: it stays as it is")


def _parse_workers(workers: str | None, certificates: Path | None, insecure_network: bool) -> Any:
    """Returns the `fl.runtime.hosts.Workers` that the options name; None if this machine trains the clients."""
    if workers is None:
        if certificates is not None or insecure_network:
            raise click.UsageError("--certificates and --insecure-network need --workers: add it, or drop them")
        return None
    if certificates is not None and insecure_network:
        raise click.UsageError("--certificates and --insecure-network contradict each other: drop one")
    from fl.runtime.hosts import Workers

    if insecure_network:
        click.echo(
            "WARNING: clients' text is sent unencrypted, to whatever program answers at the workers' addresses",
            err=True,
        )
    try:
        remote_workers = Workers.parse(workers, certificates, insecure_network)
    except ValueError as error:
        message = str(error).replace("certificates=DIR", "--certificates DIR")
        message = message.replace("insecure_network=True", "--insecure-network")
        raise click.BadParameter(message, param_hint="--workers") from None
    if certificates is None and not insecure_network:
        click.echo(
            "WARNING: every account of this machine can reach a worker through the local port of an ssh tunnel, and "
            "can take over that port when ssh ends: on a shared machine, use --certificates",
            err=True,
        )
    return remote_workers


def _with_strict(overrides: tuple[str, ...], strict: bool) -> tuple[str, ...]:
    return (*overrides, "data.strict=true") if strict else overrides


@contextlib.contextmanager
def _strict_named_as_typed(strict: bool) -> Iterator[None]:
    """Makes an error that advises to set the key `data.strict`, raised inside `with`, name --strict if it was given."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("set data.strict = false", "drop --strict")
        if not strict or message == str(error):
            raise
        raise ValueError(message) from error


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text file to evaluate on, instead of the test clients; may be repeated.",
)
def evaluate(run: Path, text: tuple[Path, ...]) -> None:
    """Evaluate a trained run on its test clients, beside the baselines, or any model on text files.

    RUN is the folder of a run or, with --text, of an imported model.
    """
    extras.require("models")
    if text:
        from experiments.text_evaluation import evaluate_text

        click.echo(evaluate_text(run, text))
        return
    folder = RunFolder(run)
    if folder.weights.exists() and not folder.config.exists():
        raise click.UsageError(f"{run} holds no run, and so no test clients: give text files with --text")
    from experiments import results

    click.echo(results.evaluate(folder))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write the privacy reports of a run from its ledger: report.* for the operator, report-release.* for publication.

    RUN is the folder of a run. It may also be the ledger file of a budget: then the report on the budget's releases is
    written beside that file.
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
@SETTINGS
@_STRICT
def data(config: str, overrides: tuple[str, ...], strict: bool) -> None:
    """Build the token store of a config and describe its contents.

    CONFIG is a TOML file, or the name of a shipped one (demo, production, scratch, long). Runs of the same config use
    the store again.
    """
    extras.require("models")
    from experiments.data import describe, prepare

    settings = config_file.load(config, _with_strict(overrides, strict))
    with _strict_named_as_typed(strict):
        click.echo(describe(prepare(settings, None)))

"""Defines the command `pretrain`, which trains a model centrally on the public text of a config."""

import json
from datetime import datetime
from pathlib import Path

import click

from experiments import config_file, extras
from experiments.commands.runs import SETTINGS, leaving_resumable
from experiments.config_checks import RECURRENT_KEYS, TRANSFORMER_KEYS
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line
from experiments.runs import RunFolder
from models.presets import MAX_HEADS


def _settings_of(run: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the config of a run, and the overrides that take the shape of its model out.

    Raises:
      click.UsageError: the run has none.
    """
    config = RunFolder(run).config
    if not config.is_file():
        raise click.UsageError(f"--heads-on {run}: names no public text (no config.toml): give a config before it")
    keys = (f"model.{name}" for name in ("preset", "embedding", *RECURRENT_KEYS, *TRANSFORMER_KEYS))
    return str(config), tuple(f"{key}=none" for key in (*keys, "vocabulary.size", "vocabulary.of"))


def _check_heads_on(run: str, overrides: tuple[str, ...]) -> None:
    """Raises a click.UsageError if there is no such folder, or a `--set` says what `--heads-on` says."""
    if not run or not Path(run).is_dir():
        raise click.UsageError(f"--heads-on {run!r}: does not exist: give the folder of a model")
    for override in overrides:
        section, _, rest = override.partition(".")
        key = f"{section.strip()}.{rest.partition('=')[0].strip()}"
        if key in ("model.init", "pretraining.freeze_base"):
            raise click.UsageError(f"--set {override} does not go with --heads-on {run}, which sets {key}: drop one")


@click.command()
@click.argument("config", required=False)
@SETTINGS
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the new model.", show_default="runs/CONFIG-DATE"
)
@click.option(
    "--heads-on",
    metavar="RUN",
    help="Folder of a model, as for model.init, to train prediction heads on without changing it; short for --set "
    "model.init=RUN --set pretraining.freeze_base=true. Their number is model.prediction_heads. Without CONFIG, the "
    "other settings are those of RUN.",
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", help="Folder of an interrupted pretraining to resume."
)
def pretrain(
    config: str | None, overrides: tuple[str, ...], output: Path | None, heads_on: str | None, resume: Path | None
) -> None:
    """Train a model centrally on the public text of a config, without any client.

    CONFIG is a TOML file, or the name of a shipped one. Of its keys, data.public, clients.sequence_length and those of
    the sections vocabulary, model and pretraining are used. The folder of the result is evaluated, exported and used by
    model.init like that of any model.

    With model.prediction_heads from 2, prediction heads are trained together with the model. With --heads-on RUN too,
    only they are trained, and RUN's model stays as it is.
    """
    extras.require("federated")
    name = None if config is None else Path(config).stem
    if resume is None and heads_on is not None:
        _check_heads_on(heads_on, overrides)
    if resume is None and config is None and heads_on is not None:
        name = Path(heads_on).name
        config, own = _settings_of(Path(heads_on))
        overrides = (*own, *overrides)
    if (config is None) == (resume is None):
        raise click.UsageError("give either a config to start, or --resume RUN to continue")
    show, is_new_folder = ConsoleDisplay(), False
    if resume is not None:
        if overrides or output or heads_on:
            raise click.UsageError(
                "--resume takes the config and the folder from the run: drop --set and --output"
                + (" and --heads-on" if heads_on else "")
            )
        run = RunFolder(resume)
        run.read_config()
    else:
        from experiments.data import absolute

        assert config is not None
        if heads_on is not None:
            overrides = (
                *overrides,
                f"model.init={json.dumps(heads_on, ensure_ascii=False)}",
                "pretraining.freeze_base=false",
            )
            if config_file.load(config, overrides).model.prediction_heads == 1:
                raise click.UsageError(
                    f"--heads-on {heads_on} needs --set model.prediction_heads=N, with N from 2 to {MAX_HEADS}"
                )
            overrides = (*overrides, "pretraining.freeze_base=true")
        settings = absolute(config_file.load(config, overrides))
        if settings.pretraining.epochs == 0:
            raise ValueError("pretraining.epochs = 0 trains nothing: set it to at least 1")
        run = RunFolder(output or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        is_new_folder = run.create(settings)
    from experiments import public_run

    with leaving_resumable(run, "pretrain", resume is None, is_new_folder):
        heads = public_run.train(run, command_line(), show)
    if heads:
        click.echo(heads)
    click.echo(f"wrote {run.path}: evaluate it on text files with fedspeak evaluate {run.path} --text FILE")

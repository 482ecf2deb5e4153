"""Defines `fedspeak reproduce si`: what scale-invariant cells and transformers gain in federated training.

The study tests the claims of Ro et al. 2024 (https://arxiv.org/abs/2403.08100) on clients that train by SGD: that the
scale-invariant model converges faster and to a better loss, with other non-adaptive algorithms too, and that it has the
better utility at equal privacy. Learning rates are chosen on validation clients with one seed (`si_choice`), and each
arm's choice is trained with other seeds and reported on test clients (`si_analysis`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from experiments import config_file, extras, options
from experiments.display import ConsoleDisplay
from experiments.partial_results import resume
from experiments.provenance import command_line, versions
from experiments.runs import read_json, write_json
from fl.runtime.kernels import describe_kernels
from privacy.files import write_public


@click.command("si")
@click.option(
    "--scale",
    type=click.Choice(("smoke", "small", "full")),
    default="smoke",
    show_default=True,
    help="How much to train: smoke tries the study in a minute or two, small takes hours on two cores, full days.",
)
@click.option(
    "--config",
    help="Config with data and sizes of your own; cell, rates, optimizers, clip and noise are the study's. "
    "Default: the shipped config si, with the sizes of the scale.",
)
@click.option(
    "--resume",
    "earlier",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Results file of an interrupted study to go on from, if --output holds none.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    help="Stop after the cell in which so many minutes have passed; 0 trains nothing and writes what there is.",
)
@options.output("runs/si", "the tables, the plots and the results")
def si(scale: str, config: str | None, earlier: Path | None, minutes: float | None, output: Path) -> None:
    """Compare CIFG and transformer with their scale-invariant forms in federated training.

    Every cell of the study, a model trained in one way with one seed, is written to metrics.json as soon as it is done.
    An interrupted study goes on where it was, with the same --output.
    """
    extras.require("federated")
    show = ConsoleDisplay()
    from experiments import data
    from experiments.reproduce import si_arms, si_plots, si_tables
    from experiments.reproduce.si_choice import MissingError

    chosen = si_arms.SCALES[scale]
    settings = config_file.load(config or "si")
    settings = data.absolute(settings if config else si_arms.change(settings, chosen.changes))
    arms = si_arms.arms(settings, chosen)
    for arm in arms:  # finds what does not fit before anything is trained
        for model in arm.models:
            si_arms.configure(settings, chosen, arm, si_arms.Cell(arm.name, model, 1.0, 1.0))
    output.mkdir(parents=True, exist_ok=True)
    prepared = data.prepare(settings, None)
    asked = {"scale": scale, "config": _identity(settings), "store": prepared.store.digest}
    path = output / "metrics.json"
    if earlier is not None and not path.exists():
        write_json(path, read_json(earlier))
    found = resume(path, asked, {"rows": [], "guarantees": {}, "versions": [], "kernels": []})
    found["command"] = command_line()
    for name, own in (("versions", versions()), ("kernels", describe_kernels())):
        if own not in found[name]:
            found[name].append(own)
    study = Training(settings, chosen, arms, prepared, found, path, show, minutes)
    study.describe()
    try:
        study.run(None)
    except MissingError:
        if minutes != 0:
            study.train()
    write_json(path, found)
    table = si_tables.format_tables(found)
    write_public(output / "table.md", table.encode())
    si_plots.draw(output, found)
    click.echo(table, nl=False)


def _identity(config: Any) -> str:
    """Returns the keys of a config that are not the defaults, as TOML, so that results stay when keys are added.

    The paths of the data are left out: it may stand elsewhere on another machine, and has a digest.
    """
    import msgspec
    import tomli_w

    plain, tree = type(config)(), {}
    for section, keys in msgspec.structs.asdict(config).items():
        default = msgspec.structs.asdict(getattr(plain, section))
        tree[section] = {key: value for key, value in msgspec.structs.asdict(keys).items() if value != default[key]}
    for key in ("path", "public"):
        tree["data"].pop(key, None)
    return tomli_w.dumps({section: keys for section, keys in tree.items() if keys})


class OutOfTimeError(Exception):
    """Says that the time that the user gave has passed."""


class Training:
    """Trains the cells of the study that the results do not hold yet.

    Args:
      config: the study's config.
      scale: its `si_arms.Scale`.
      arms: its arms.
      prepared: its data.
      found: its results, to which rows are added.
      path: file of the results.
      show: display of progress.
      minutes: after how many minutes no new cell is begun; None: never.
    """

    def __init__(
        self,
        config: Any,
        scale: Any,
        arms: list[Any],
        prepared: Any,
        found: dict[str, Any],
        path: Path,
        show: ConsoleDisplay,
        minutes: float | None,
    ) -> None:
        from experiments.reproduce.si_choice import Rows

        self._config, self._scale, self._arms, self._data = config, scale, arms, prepared
        self._found, self._path, self._show = found, path, show
        self._rows = Rows(found["rows"])
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def train(self) -> None:
        """Trains all that is missing, or until the time has passed."""
        from experiments.display import no_notices
        from experiments.reproduce.si_cells import Trainer
        from fl.runtime import local_runtime

        self._show.note("loading TensorFlow Federated …")
        with no_notices():
            import tensorflow_federated  # noqa: F401 - it prints notices when it is loaded
        with local_runtime(concurrent_calls=self._config.run.shards) as runtime:
            trainer = Trainer(self._config, self._scale, self._data, runtime, self._path.parent, self._show)
            try:
                self.run(trainer)
            except OutOfTimeError:
                self._show.note("the time has passed: the same command goes on from here")

    def run(self, trainer: Any) -> None:
        """Goes through all cells; without a trainer it raises MissingError at the first that the results lack."""
        from experiments.reproduce.si_choice import choose, final_cells

        rounds, by_name = self._config.run.rounds, {arm.name: arm for arm in self._arms}
        for arm in self._arms:
            for model in arm.models:
                train = self._trainer(trainer, by_name)
                chosen = choose(arm, model, by_name, self._scale, rounds, train)
                for cell, count in final_cells(arm, chosen, self._scale, rounds):
                    train(cell, count)
                if trainer is not None:
                    trainer.forget()
            if trainer is not None:
                trainer.recycle()

    def _trainer(self, trainer: Any, by_name: dict[str, Any]) -> Callable[[Any, int], Any]:
        from experiments.reproduce.si_choice import MissingError

        def train(cell: Any, rounds: int) -> Any:
            try:
                return self._rows(cell, rounds)
            except MissingError:
                if trainer is None:
                    raise
            is_final = cell.seed in self._scale.seeds and rounds == self._config.run.rounds
            row = trainer(by_name[cell.arm], cell, rounds, is_final)
            self._keep(row, cell)
            if self._end is not None and time.monotonic() > self._end:
                raise OutOfTimeError
            return row

        return train

    def _keep(self, row: Any, cell: Any) -> None:
        """Adds a row to the results, in place of one with fewer rounds, writes them and shows the progress."""
        from experiments.reproduce.si_choice import count_all, time_left

        self._rows.add(row)
        rows = self._found["rows"] = self._rows.list()
        write_json(self._path, self._found)
        cells, _ = count_all(self._arms, self._scale, self._config.run.rounds)
        left = time_left(self._arms, self._scale, self._config.run.rounds, rows) or 0.0
        loss = row["curve"]["loss"][-1] if row["curve"]["loss"] else None
        self._show.note(
            f"{len(rows)} of about {cells} cells, about {left / 3600:.1f} h left: {cell.arm}, {cell.model}, rates "
            f"{cell.client_rate:g} and {cell.server_rate:g}, initial weights x {cell.scale:g}, seed {cell.seed}: loss "
            f"{'not finite' if loss is None else format(loss, '.3f')} after {row['rounds']} rounds"
        )

    def describe(self) -> None:
        """Adds what the tables state beside the rows: guarantees, the unigram's loss, gradients, numbers of clients."""
        from experiments.reproduce.si_arms import Cell, configure
        from experiments.reproduce.si_cells import describe_guarantee, unigram_loss
        from experiments.reproduce.si_gradients import initial_gradients

        clients = self._data.splits
        self._found["clients"] = {name: len(ids) for name, ids in clients._asdict().items()}
        self._found["vocabulary"] = self._data.vocabulary.size
        self._found["unigram"] = unigram_loss(self._config, self._data)
        self._found["gradients"] = initial_gradients(self._config, self._scale, self._data)
        for arm in self._arms:
            if arm.is_private and arm.name not in self._found["guarantees"]:
                config = configure(self._config, self._scale, arm, Cell(arm.name, arm.models[0], 1.0, 1.0))
                self._found["guarantees"][arm.name] = describe_guarantee(config, len(clients.train))

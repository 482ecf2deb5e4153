"""Chooses the models of a decoding study: those that `fedspeak reproduce drafters` trained, or a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from experiments import config_file, extras
from experiments.drafting import FORMS, short_name
from experiments.runs import RunFolder

_OPTIONS = (
    click.option(
        "--models",
        type=click.Path(path_type=Path),
        default=Path("runs/drafters"),
        show_default=True,
        help="Folder that fedspeak reproduce drafters wrote: its target and drafters are used.",
    ),
    click.option(
        "--target",
        type=click.Path(path_type=Path),
        help="Folder of a trained or imported model to use instead of those in --models; needs --drafter.",
    ),
    click.option("--drafter", "drafters", multiple=True, help=f"What drafts for --target: {FORMS}. May be repeated."),
)


class StudyModels(NamedTuple):
    """Holds what a study decodes.

    Attributes:
      target: folder of the target.
      drafters: name of each drafter for `experiments.drafting.load_drafter`, by its name in the results.
      source: (speaker, lines) pairs of held-out text.
    """

    target: Path
    drafters: dict[str, str]
    source: Any


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options `--models`, `--target` and `--drafter` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def choose_models(models: Path, target: Path | None, drafters: tuple[str, ...]) -> StudyModels:
    """Returns the models that the options name.

    Raises:
      OSError, ValueError: an option does not fit, or a model cannot be read; one line.
    """
    from experiments.reproduce.coupling_models import require_models
    from experiments.reproduce.drafters import MODELS, TARGET

    if (target is None) != (not drafters):
        raise ValueError("--target and --drafter belong together: give both, or neither to use the models in --models")
    if len(set(drafters)) < len(drafters):
        raise ValueError("--drafter: the same drafter is given twice: drop one")
    if target is None:
        require_models(models)
        target = models / TARGET
        by_name = {name: str(models / name) for name in MODELS if name != TARGET}
        config = RunFolder(target).read_config()
    else:
        RunFolder(target).require_trained()
        by_name = {short_name(name): name for name in drafters}
        if len(by_name) < len(drafters):
            raise ValueError("--drafter: two folders or files have the same name: rename one")
        config = config_file.load("target")
    extras.require("federated")
    from experiments import data

    source, _, _ = data.sources(config)
    return StudyModels(target, by_name, source)


def learn_ngram(chosen: StudyModels, path: Path) -> StudyModels:
    """Returns the models with an n-gram drafter, which is learned from the target's public text and saved."""
    from experiments import ngram_learning
    from models.ngram import MAX_ENTRIES, MAX_SUCCESSORS, ORDER

    tables, _ = ngram_learning.learn(chosen.target, (), ORDER, MAX_ENTRIES, MAX_SUCCESSORS)
    tables.save(path)
    return chosen._replace(drafters={**chosen.drafters, "ngram": f"ngram:{path}"})

"""Trains a model on the public text of a config: alone, into a folder of its own, or before the rounds of a run."""

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments import assembly, data, initial_model, interrupt
from experiments.config import Config
from experiments.display import ConsoleDisplay
from experiments.head_evaluation import HeadEvaluator, table
from experiments.initial_model import InitialModel
from experiments.pretraining import held_out, initial_weights, pretrain
from experiments.provenance import versions
from experiments.runs import RunFolder, read_json, save_weights, write_json
from fl.runtime.kernels import describe_kernels
from privacy.files import require_writable


def train(run: RunFolder, command: str, show: ConsoleDisplay) -> str:
    """Trains a model to its end, whether its folder is new, was interrupted or holds the finished model already.

    A model with prediction heads is evaluated on the held-out public text, by which early stopping chose the weights.

    Args:
      run: folder that holds the config (`RunFolder.create`).
      command: the command line, which is recorded in `facts.json`.
      show: display of the notes and the progress.

    Returns:
      The results of each prediction head as Markdown; empty if the model has none, or was trained before.

    Raises:
      OSError, ValueError: training cannot begin or go on; one line. It can be resumed after the cause is fixed.
    """
    config = run.read_config()
    require_writable(run.path)
    if run.weights.exists():
        show.note(f"{run.path} holds a trained model already: nothing is trained")
        return ""
    if run.facts.exists() and "store" in read_json(run.facts):
        raise ValueError(f"{run.path} is a federated run: resume it with fedspeak train --resume {run.path}")
    show.note(f"run: {run.path}")
    initial = load_initial(config)
    origin, description = _find_origin(config, initial)
    words, sequences, declared = data.prepare_public(config, run.vocabulary)
    show.note(f"public: {'; '.join(declared)}")
    show.note(f"vocabulary: {words.size} sub-words ({words.digest[:12]}); {len(sequences):,} sequences")
    model = assembly.build_model(config, words.size, None if initial is None else initial.model)
    if origin is not None:
        show.note(description)
        declared = (*declared, description)
    if not run.facts.exists():
        # Without facts, digests that are there may be those of another text, which is then not compared below.
        run.text_digests.unlink(missing_ok=True)
    _record_facts(run, command, declared, words.digest, sequences, origin, show)
    if not run.text_digests.exists():
        initial_model.write_text_digests(run.text_digests, data.public_text(config)[0])
    show.note("loading TensorFlow Federated …")
    weights = train_public(model, sequences, config, initial, show, run)
    write_json(run.model, model.config())
    text = ""
    if config.model.prediction_heads > 1:
        found = HeadEvaluator(model, [row[np.newaxis] for row in held_out(sequences)])(weights).to_dict()
        write_json(run.heads, found)
        text = table(found, "held-out public text (sequences)")
    save_weights(run.weights, weights)
    return text


def _find_origin(config: Config, initial: InitialModel | None) -> tuple[str | None, str]:
    """Returns digest and description of the model whose weights or vocabulary the new one begins with; None if none."""
    if config.vocabulary.of is not None:
        found = initial_model.load(Path(config.vocabulary.of), "vocabulary.of")
        return found.digest, f"vocabulary of {found.description}"
    return (None, "") if initial is None else (initial.digest, initial.description)


def _record_facts(
    run: RunFolder,
    command: str,
    declared: tuple[str, ...],
    vocabulary: str,
    sequences: np.ndarray,
    origin: str | None,
    show: ConsoleDisplay,
) -> None:
    """Records what the training begins with, or checks that it goes on with the same.

    Raises:
      ValueError: the public text or the initial model is another one than at the beginning.
    """
    inputs = {
        "sequences": hashlib.sha256(np.ascontiguousarray(sequences).tobytes()).hexdigest(),
        "initial": origin,
    }
    kernels = describe_kernels()
    if not run.facts.exists():
        facts = {"command": command, "versions": versions(), "public": declared, "vocabulary": vocabulary}
        write_json(run.facts, {**facts, **inputs, "kernels": [kernels]})
        return
    facts = read_json(run.facts, "kernels", *inputs)
    key = "model.init" if run.read_config().vocabulary.of is None else "vocabulary.of"
    for name, what in (("sequences", "the public text"), ("initial", f"the model that {key} names")):
        if facts[name] != inputs[name]:
            raise ValueError(
                f"{what} differs from what {run.path} began with: restore it, or start a new model with fedspeak "
                "pretrain"
            )
    if warning := run.check_kernels(kernels, "steps"):
        show.note(warning)
        write_json(run.facts, {**facts, "kernels": [*facts["kernels"], kernels]})


def load_initial(config: Config) -> InitialModel | None:
    """Loads the model that `model.init` names; None if the config names none."""
    return None if config.model.init is None else initial_model.load(Path(config.model.init))


def train_public(
    model: Any,
    sequences: np.ndarray,
    config: Config,
    initial: InitialModel | None,
    show: ConsoleDisplay,
    run: RunFolder | None = None,
) -> dict[str, np.ndarray]:
    """Trains a model on the public text and shows the progress; see `experiments.pretraining.pretrain`.

    Args:
      model: the language model.
      sequences: int32 [n, T+1], the public text.
      config: the run's config.
      initial: the model to start from; None: new weights.
      show: display of the progress.
      run: folder for checkpoints and TensorBoard; None: nothing is saved, and an interrupted training starts anew.
    """
    seed = config.model.seed
    weights = initial_weights(model, sequences, seed) if initial is None else initial.weights
    trained: Any = model
    frozen: dict[str, Any] = {}
    if config.model.prediction_heads > 1:
        import tensorflow as tf

        show.note(f"{config.model.prediction_heads} prediction heads: losses in training are sums over the heads")
        weights = dict(sorted((model.init_heads(seed) | weights).items()))
        if config.pretraining.freeze_base:
            frozen, weights = model.split(weights)
            # As tensors, which the graphs share.
            constants = {name: tf.constant(value) for name, value in frozen.items()}
            trained = dataclasses.replace(model, base_weights=constants)
    with contextlib.ExitStack() as stack:
        board: Any = None
        advance: Any = None

        def on_step(step: int, steps: int) -> None:
            nonlocal advance
            interrupt.check()
            if advance is None:
                advance = stack.enter_context(show.task("public model", steps))
            if show.console.is_terminal:
                advance(step, {})

        def on_evaluation(step: int, steps: int, loss: float) -> None:
            nonlocal board
            if run is not None and board is None:
                from experiments.board import Board

                board = stack.enter_context(Board(run.tensorboard))
            if board is not None:
                board.write(step, {"public_loss": loss})
            advance(step, {"public_loss": loss})

        folder = None if run is None else run.checkpoints
        weights = pretrain(trained, sequences, config.pretraining, weights, seed, on_evaluation, folder, on_step)
    return dict(sorted((frozen | weights).items()))

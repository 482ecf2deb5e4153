"""Writes folders of small models, as `fedspeak pretrain` and `fedspeak import` leave them."""

from pathlib import Path
from typing import Any

from experiments.runs import RunFolder, save_weights, write_json
from models.vocabulary import Vocabulary


def write_model(folder: Path, model: Any, vocabulary: Vocabulary) -> dict[str, Any]:
    """Writes a model with new weights, which are returned."""
    folder.mkdir()
    run, weights = RunFolder(folder), model.init(0)
    save_weights(run.weights, weights)
    write_json(run.model, model.config())
    vocabulary.save(run.vocabulary)
    write_json(run.facts, {"public": [], "vocabulary": vocabulary.digest})
    return weights

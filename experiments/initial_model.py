"""Loads the model that a run starts from, and checks that it was not trained on text of the run's own clients.

A model that has seen the clients' text without noise reveals it, whatever noise the run adds. So a private run refuses
such a model.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data
from experiments.config import Config
from experiments.runs import RunFolder, load_trained, read_json

_LEAST_CHARACTERS = 40
"""Shorter sentences are not compared: "I thank you." may stand in any text."""
_MOST_DIGESTS = 100_000
_LARGEST_SHARE = 0.001
_LEAST_MATCHES = 3


@dataclass(frozen=True)
class InitialModel:
    """Holds the model that a run starts from.

    Attributes:
      folder: folder of the pretrained, trained or imported model.
      model: the language model.
      weights: its weights by name.
      digest: SHA-256 (hex) of its configuration, vocabulary and weights.
      description: where it comes from, for the privacy plan.
    """

    folder: Path
    model: Any
    weights: dict[str, np.ndarray]
    digest: str
    description: str


def load(folder: Path) -> InitialModel:
    """Loads a model from the folder of a finished run, pretraining or import.

    Raises:
      OSError, ValueError: the folder holds no finished model, or it is damaged; one line.
    """
    model, weights, vocabulary = load_trained(folder)
    total = hashlib.sha256(f"{model.config()} {vocabulary.digest}".encode())
    for name in sorted(weights):
        total.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    facts = read_json(RunFolder(folder).facts)
    match facts:
        case {"imported": {"file": file, "description": description}}:
            source = f"imported from {file} ({description}), trained on text that is not known here"
        case {"public": declared}:
            source = f"trained on {'; '.join(declared)}"
        case _:
            source = f"trained by the run {folder.resolve().name}"
    digest = total.hexdigest()
    return InitialModel(folder, model, weights, digest, f"initial model {digest[:16]}, {source}")


def write_sentence_digests(path: Path, sentences: Iterable[str]) -> None:
    """Writes digests of the sentences that a model is trained on, at most 100,000: those with the smallest digests."""
    digests = np.unique(np.fromiter(_digests(sentences), np.uint64))
    np.save(path, digests[:_MOST_DIGESTS])


def require_other_text(initial: InitialModel, prepared: data.Data) -> None:
    """Checks that an initial model was not trained on text of the run's clients.

    The check compares the token stores, the client ids and the sentences of at least 40 characters. It does not find
    clients' text in models that were imported, because their text is not known.

    Args:
      initial: the initial model.
      prepared: the data of the run.

    Raises:
      ValueError: it was, or its text is no longer there to be compared; one line.
    """
    run = RunFolder(initial.folder)
    facts = read_json(run.facts)
    if "imported" in facts:
        return
    if run.sentence_digests.exists():
        trained_on = np.load(run.sentence_digests)
        problem = _find_sentences(trained_on, prepared)
    else:
        problem = _compare_with_run(run, facts, prepared)
    if problem:
        raise ValueError(
            f"model.init = {str(initial.folder)!r} was trained on text of this run's clients ({problem}): no noise of "
            "this run would protect them; start from a model of other text, or set privacy.noise_multiplier = 0, and "
            "the report will say NOT PRIVATE"
        )
    config = _config_of(run)
    if config is not None and config.model.init is not None:
        require_other_text(load(Path(config.model.init)), prepared)


def _config_of(run: RunFolder) -> Config | None:
    return run.read_config() if run.config.exists() else None


def _compare_with_run(run: RunFolder, facts: dict[str, Any], prepared: data.Data) -> str | None:
    """Returns how the clients of a federated run overlap with those of `prepared`; None if they do not."""
    if facts.get("store") == prepared.store.digest:
        return "it has the same clients"
    try:
        other = data.prepare(run.read_config(), run.vocabulary)
    except OSError as error:
        raise ValueError(
            f"model.init = {str(run.path)!r}: the text that it was trained on cannot be compared with this run's "
            f"({error}): put it back, or start from another model"
        ) from None
    trained, own = set(other.splits.train), set(prepared.splits.train)
    if common := len(trained & own):
        return f"{common} client ids are in both"
    sentences = (s for client in other.splits.train for s in _sentences(other, client))
    return _find_sentences(np.unique(np.fromiter(_digests(sentences), np.uint64))[:_MOST_DIGESTS], prepared)


def _find_sentences(trained_on: np.ndarray, prepared: data.Data) -> str | None:
    """Returns how many of the clients' sentences are among those trained on, if they are too many for chance."""
    largest = trained_on[-1] if len(trained_on) == _MOST_DIGESTS else np.uint64(2**64 - 1)
    compared = found = 0
    for client in prepared.splits.train:
        digests = np.fromiter(_digests(_sentences(prepared, client)), np.uint64)
        digests = digests[digests <= largest]
        matches = int(np.isin(digests, trained_on).sum())
        compared, found = compared + len(digests), found + matches
        if matches >= _LEAST_MATCHES and 2 * matches >= len(digests):
            return "all or most sentences of a client"
    if found >= _LEAST_MATCHES and found > _LARGEST_SHARE * compared:
        return f"{found} of {compared} compared sentences"
    return None


def _sentences(prepared: data.Data, client: str) -> Iterator[str]:
    tokens = prepared.store.tokens(prepared.store.index(client))
    for sentence in np.split(tokens, np.flatnonzero(tokens == data.clients.EOS)):
        yield prepared.vocabulary.decode(sentence.tolist())


def _digests(sentences: Iterable[str]) -> Iterator[int]:
    for sentence in sentences:
        words = " ".join(sentence.split())
        if len(words) >= _LEAST_CHARACTERS:
            yield int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")

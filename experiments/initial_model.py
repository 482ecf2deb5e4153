"""Loads the model that a run starts from, and checks that it was not trained on text of the run's own clients.

The ε of a run covers what the run learns, and nothing that its initial model has learned from the same clients before.
So a private run refuses such a model.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import data
from experiments.config import Config
from experiments.runs import RunFolder, load_trained, read_json
from experiments.text_overlap import Digests, describe_overlap, digest_text
from fl.clients import EOS
from privacy.files import write_private
from privacy.ledger import Ledger

_MOST_CLIENTS = 20_000
_MOST_TOKENS = 20_000_000
"""Clients and tokens of a run that are compared; 20 million tokens take about a minute."""


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


def load(folder: Path, key: str = "model.init") -> InitialModel:
    """Loads a model from the folder of a finished run, pretraining or import, which a config names by `key`.

    Raises:
      OSError, ValueError: the folder holds no finished model, or it is damaged; one line that names the key.
    """
    try:
        model, weights, vocabulary = load_trained(folder)
        source = _describe_source(RunFolder(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key} = {str(folder)!r}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{key} = {str(folder)!r}: {error}") from None
    total = hashlib.sha256(f"{model.config()} {vocabulary.digest}".encode())
    for name in sorted(weights):
        total.update(name.encode())
        total.update(np.ascontiguousarray(weights[name]).tobytes())
    digest = total.hexdigest()
    return InitialModel(folder, model, weights, digest, f"initial model {digest[:16]}, {source}")


def _describe_source(run: RunFolder) -> str:
    match read_json(run.facts):
        case {"imported": {"file": file, "description": description}}:
            return f"imported from {file} ({description}), trained on text that is not known here"
        case {"public": declared}:
            return f"trained on {'; '.join(declared)}"
    plan = Ledger.read(run.ledger).plan
    guarantee = "with that run's guarantee" if plan.is_private else "without privacy"
    return f"trained by the run {run.path.resolve().name} on the text of its clients, {guarantee}"


def write_text_digests(path: Path, sentences: Iterable[str]) -> None:
    """Writes digests of the text that a model is trained on, with which later runs compare their clients' text.

    Raises:
      OSError: the file cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, **digest_text(sentences)._asdict())
    write_private(path, content.getvalue())


def require_other_text(initial: InitialModel, prepared: data.Data) -> None:
    """Checks that an initial model was not trained on text of the run's training clients.

    A pretrained model's text is compared with the clients' by passages of eight words and by short lines
    (`experiments.text_overlap`). A federated run is compared by its token store, its client ids, and its clients' and
    public text. If the initial model began from another one, that is compared too. So that the time does not grow with
    the population, the text of at most 20,000 clients is compared, chosen at random, and 20 million tokens in all. An
    overlap that concerns one client in a thousand is missed with probability 2e-9.

    The check cannot know the text of imported models, nor find text that was changed or shortened.

    Args:
      initial: the initial model.
      prepared: the data of the run.

    Raises:
      ValueError: it was, or its text is no longer there to be compared; one line.
    """
    if overlap := _find_overlap(initial.folder, prepared):
        raise ValueError(
            f"model.init = {str(initial.folder)!r} was trained on text of this run's clients ({overlap}), which this "
            "run's ε does not cover: start from a model of other text, or set privacy.noise_multiplier = 0, and the "
            "report will say NOT PRIVATE"
        )


def require_other_public_text(config: Config, prepared: data.Data) -> None:
    """Checks that the public text, if a run learns from it, holds no text of the run's training clients.

    The text is compared as `require_other_text` compares that of a pretrained model.

    Args:
      config: configuration of the run.
      prepared: the data of the run.

    Raises:
      ValueError: it does; one line.
    """
    if config.model.init is not None and not config.pretraining.epochs:
        return
    if overlap := describe_overlap(digest_text(data.public_text(config)[0]), _clients_text(prepared)):
        use = "pretraining" if config.pretraining.epochs else "the vocabulary"
        raise ValueError(
            f"data.public = {list(config.data.public)!r} has text of this run's clients ({overlap}), which {use} would "
            "use outside this run's ε: name other text, or set privacy.noise_multiplier = 0, and the report will say "
            "NOT PRIVATE"
        )


def _find_overlap(folder: Path, prepared: data.Data) -> str | None:
    """Describes what the text of the model in `folder`, and of those it began from, has in common with the clients'."""
    run = RunFolder(folder)
    facts = read_json(run.facts)
    if "imported" in facts:
        return None
    if "public" in facts:
        overlap = describe_overlap(_load_text_digests(run), _clients_text(prepared))
    else:
        overlap = _compare_with_run(run, facts, prepared)
    config = run.read_config()
    if overlap or (earlier := config.model.init or config.vocabulary.of) is None:
        return overlap
    try:
        begun_from = load(Path(earlier))
    except (OSError, ValueError) as error:
        raise _not_comparable(run, str(error)) from None
    if begun_from.digest != facts.get("initial"):
        raise _not_comparable(run, f"it began from the model in {earlier}, which was changed since")
    overlap = _find_overlap(begun_from.folder, prepared)
    return None if overlap is None else f"through {earlier}, from which it began: {overlap}"


def _not_comparable(run: RunFolder, reason: str) -> ValueError:
    return ValueError(
        f"model.init = {str(run.path)!r}: the text that it was trained on cannot be compared with this run's clients' "
        f"({reason}): put it back, or start from another model"
    )


def _load_text_digests(run: RunFolder) -> Digests:
    try:
        with np.load(io.BytesIO(run.text_digests.read_bytes()), allow_pickle=False) as arrays:
            digests = Digests(arrays["passages"], arrays["lines"])
        for values in digests:
            if values.dtype != np.uint64 or values.ndim != 1 or (values[1:] <= values[:-1]).any():
                raise ValueError(f"{run.text_digests} is damaged")
    except FileNotFoundError:
        raise _not_comparable(run, f"{run.text_digests} is missing") from None
    except Exception:  # NumPy and zipfile each raise exceptions of their own
        raise _not_comparable(run, f"{run.text_digests} is damaged") from None
    return digests


def _compare_with_run(run: RunFolder, facts: dict[str, Any], prepared: data.Data) -> str | None:
    """Describes how the clients and the public text of a federated run overlap with the clients of `prepared`."""
    if facts.get("store") == prepared.store.digest:
        return "it has the same clients"
    try:
        config = run.read_config()
        other = data.prepare(config, run.vocabulary)
        if other.store.digest != facts.get("store"):
            raise ValueError(f"the data of {run.path} was changed since")
        own = set(prepared.splits.train)
        if common := sum(client in own for client in other.splits.train):
            return f"{common} client ids are in both; if they are other people, give their ids a prefix"
        if overlap := describe_overlap(digest_text(data.public_text(config)[0]), _clients_text(prepared)):
            return f"its public text: {overlap}"
    except (OSError, ValueError) as error:
        raise _not_comparable(run, str(error)) from None
    trained_on = digest_text(sentence for _, sentences in _clients_text(other) for sentence in sentences)
    return describe_overlap(trained_on, _clients_text(prepared))


def _clients_text(prepared: data.Data) -> Iterator[tuple[str, Iterator[str]]]:
    """Yields id and sentences of the training clients that are compared, and of each only the first sentences."""
    compared = data.choose_clients(prepared.splits.train, _MOST_CLIENTS)
    for client in compared:
        tokens = prepared.store.tokens(prepared.store.index(client))[: _MOST_TOKENS // len(compared)]
        yield client, _sentences(prepared, tokens)


def _sentences(prepared: data.Data, tokens: NDArray[Any]) -> Iterator[str]:
    for sentence in np.split(tokens, np.flatnonzero(tokens == EOS)):
        yield prepared.vocabulary.decode(sentence.tolist())

"""Measures how often a target and its drafters draw the same token, on next-token distributions of held-out text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.drafting import load_drafter
from experiments.intervals import mean_interval, share_interval
from experiments.reproduce.drafters import MODELS, TARGET, TEMPERATURES
from experiments.runs import RunFolder, load_trained
from models.decoding import couplings, numpy_ops, numpy_race
from models.decoding.choices import Processing
from models.decoding.numpy_processing import process

if TYPE_CHECKING:  # so that TensorFlow loads only when models are compared
    from models.decoding.drafters import Drafter

# Name in results → exact agreement of a pair of distributions.
AGREEMENTS = {
    "bound": couplings.bound,
    "minhash": couplings.darts_agreement,
    "gumbel": couplings.race_agreement,
    "maximal": lambda p, q: 1 - couplings.total_variation(p, q),
}
_BATCH_LOGITS = 1 << 25  # logits in memory at a time, for each model
SHOWN = 200  # contexts whose agreements are listed in the results, for the plot


class Position(NamedTuple):
    """Holds the next-token logits of all models in one context.

    Attributes:
      owner: number of the speaker of the text.
      logits: float32 `[V]` by the model's name.
    """

    owner: int
    logits: dict[str, NDArray[np.float32]]


def require_models(folder: Path) -> None:
    """Raises ValueError unless the folder holds all trained models of `fedspeak reproduce drafters`; one line."""
    missing = [name for name in MODELS if not RunFolder(folder / name).weights.exists()]
    if missing:
        raise ValueError(
            f"{folder} does not hold the trained models {', '.join(missing)}: run fedspeak reproduce drafters first, "
            "or give --models the folder that it wrote"
        )


def measure(target: Path, drafters: Mapping[str, str], source: Any, length: int, contexts: int, seed: int) -> Any:
    """Compares each drafter with the target.

    A drafter of another vocabulary is compared as it drafts: with the tokens that both vocabularies have, renormalised.

    Args:
      target: folder of the target's run.
      drafters: name of each drafter for `experiments.drafting.load_drafter`, by its name in the results.
      source: (speaker, lines) pairs of held-out text.
      length: number of tokens in a row of text, >= 2: the longest context, unless the target takes less.
      contexts: number of contexts, drawn at random from the text; all of them if there are fewer.
      seed: seed of the contexts and of the draws.

    Returns:
      A list of one row for each drafter and temperature: the mean total variation and the mean exact agreements with
      95 % bootstrap intervals over speakers, the share of equal tokens in one draw by the race at each context, and the
      total variation and the agreements in some of the contexts.

    Raises:
      OSError, ValueError: a model cannot be read or does not fit, or a drafter has no distribution; one line.
    """
    found: dict[tuple[str, float], list[list[float]]] = {
        (name, temperature): [] for name in drafters for temperature in TEMPERATURES
    }
    owners = []
    words = numpy_ops.seed_words(seed)
    for number, position in enumerate(_positions(target, drafters, source, length, contexts, seed)):
        owners.append(position.owner)
        noise = numpy_race.gumbels(words, number, 0, len(position.logits[TARGET]))
        for temperature in TEMPERATURES:
            distributions, tokens = {}, {}
            for name, logits in position.logits.items():
                distributions[name] = _softmax(logits.astype(np.float64) / temperature)
                tokens[name] = int(numpy_race.race(process(logits, Processing(temperature)), noise))
            p = distributions[TARGET]
            for name in drafters:
                q = distributions[name]
                values = [couplings.total_variation(p, q), *(agreement(p, q) for agreement in AGREEMENTS.values())]
                found[name, temperature].append([*values, float(tokens[name] == tokens[TARGET])])
    return [_summarise(name, t, np.array(values), np.array(owners)) for (name, t), values in found.items()]


def _summarise(name: str, temperature: float, values: NDArray[Any], owners: NDArray[Any]) -> dict[str, Any]:
    speakers = int(owners.max()) + 1
    units = np.bincount(owners, minlength=speakers)
    columns = ["total_variation", *AGREEMENTS]
    means = {
        column: mean_interval(np.bincount(owners, values[:, i], speakers), units)._asdict()
        for i, column in enumerate(columns)
    }
    return {
        "drafter": name,
        "temperature": temperature,
        "contexts": len(values),
        **means,
        "drawn": share_interval(int(values[:, -1].sum()), len(values))._asdict(),
        "points": [dict(zip(columns, np.round(row[:-1], 5).tolist(), strict=True)) for row in values[:SHOWN]],
    }


def _positions(
    target: Path, drafters: Mapping[str, str], source: Any, length: int, contexts: int, seed: int
) -> Iterator[Position]:
    """Yields the logits of all models in contexts that are drawn at random, in random order of the rows of text."""
    import tensorflow as tf

    from fl.clients import sequences
    from models.decoding.drafters import ModelDrafter

    model, weights, vocabulary = load_trained(target)
    length = min(length, model.context or length)
    readers = {TARGET: _reader(ModelDrafter(model.fit(length), weights))}
    for name, form in drafters.items():
        readers[name] = _reader(load_drafter(form, model, weights, vocabulary, length))
    speakers = [sequences(np.array(vocabulary.document("\n".join(lines)), np.int32), length) for _, lines in source]
    owners = np.repeat(np.arange(len(speakers)), [len(rows) for rows in speakers])
    rows = np.concatenate(speakers)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    owners, rows = owners[order], rows[order]
    places = np.argwhere(rows[:, 1:] != 0)
    chosen = places[np.sort(generator.permutation(len(places))[:contexts])]
    read, number = np.unique(chosen[:, 0], return_inverse=True)
    owners, rows = owners[read], rows[read]
    batch = min(len(rows), max(_BATCH_LOGITS // (length * vocabulary.size), 1))
    for begin in range(0, len(rows), batch):
        block = np.zeros((batch, length), np.int32)
        block[: len(rows) - begin] = rows[begin : begin + batch, :-1]
        logits = {name: reader(tf.constant(block)) for name, reader in readers.items()}
        for row, column in zip(number, chosen[:, 1], strict=True):
            if begin <= row < begin + batch:
                position = {name: value[row - begin, column] for name, value in logits.items()}
                _require_distributions(position)
                yield Position(int(owners[row]), position)


def _require_distributions(logits: Mapping[str, NDArray[np.float32]]) -> None:
    name = next((name for name, value in logits.items() if not np.isfinite(value).any()), None)
    if name is not None:
        raise ValueError(
            f"drafter {name!r} proposes no token after some texts: compare a model, self or ngram:FILE instead"
        )


def _reader(drafter: Drafter) -> Callable[[Any], NDArray[np.float32]]:
    """Returns a function from rows of text, int32 `[B, T]`, to the logits after each token, float32 `[B, T, V]`."""
    import tensorflow as tf

    from models.decoding.drafters import ModelDrafter
    from models.tensors import to_tensors

    if isinstance(drafter, ModelDrafter):
        model, weights = drafter.model, to_tensors(drafter.weights)

        @tf.function(autograph=False)
        def read(tokens: Any) -> Any:
            return model.extend(weights, tokens, model.initial_state(tokens.shape[0]))[0]

        return lambda tokens: read(tokens).numpy()
    step = tf.function(drafter.step, autograph=False)

    def read_stepwise(tokens: Any) -> NDArray[np.float32]:
        state, logits = drafter.initial_state(len(tokens)), []
        for place in range(tokens.shape[1]):
            found, state = step(tokens[:, place], state)
            logits.append(found.numpy())
        return np.stack(logits, axis=1)

    return read_stepwise


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()

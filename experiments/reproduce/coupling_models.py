"""Measures how often a target and its drafters draw the same token, on next-token distributions of held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.intervals import mean_interval, share_interval
from experiments.reproduce.drafters import MODELS, TARGET, TEMPERATURES
from experiments.runs import RunFolder, load_trained
from models.decoding import couplings, numpy_ops, numpy_race
from models.decoding.choices import Processing
from models.decoding.numpy_processing import process

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


def measure(target: Path, drafters: Mapping[str, Path], source: Any, length: int, contexts: int, seed: int) -> Any:
    """Compares each drafter with the target.

    Args:
      target: folder of the target's run.
      drafters: folder of each drafter's run, by name.
      source: (speaker, lines) pairs of held-out text.
      length: number of tokens in a row of text, > 0: the longest context, unless a model takes less.
      contexts: number of contexts, drawn at random from the text; all of them if there are fewer.
      seed: seed of the contexts and of the draws.

    Returns:
      A list of one row for each drafter and temperature: the mean total variation and the mean exact agreements with
      95 % bootstrap intervals over speakers, the share of equal tokens in one draw by the race at each context, and the
      total variation and the agreements in some of the contexts.

    Raises:
      OSError, ValueError: a model cannot be read, or a drafter has another vocabulary than the target; one line.
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
    target: Path, drafters: Mapping[str, Path], source: Any, length: int, contexts: int, seed: int
) -> Iterator[Position]:
    """Yields the logits of all models in contexts that are drawn at random, in random order of the rows of text."""
    import tensorflow as tf

    from fl.clients import sequences

    model, weights, vocabulary = load_trained(target)
    loaded = {TARGET: (model, weights)}
    for name, folder in drafters.items():
        drafter, own_weights, own = load_trained(folder)
        if own.digest != vocabulary.digest:
            raise ValueError(
                f"{folder} has another vocabulary than {target}: give a drafter with the target's vocabulary"
            )
        loaded[name] = (drafter, own_weights)
    length = min(length, *(model.context or length for model, _ in loaded.values()))
    speakers = [sequences(np.array(vocabulary.document("\n".join(lines)), np.int32), length) for _, lines in source]
    owners = np.repeat(np.arange(len(speakers)), [len(rows) for rows in speakers])
    rows = np.concatenate(speakers)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    owners, rows = owners[order], rows[order]
    batch = max(_BATCH_LOGITS // (length * vocabulary.size), 1)
    models = {
        name: (model.fit(length), {key: tf.constant(value) for key, value in weights.items()})
        for name, (model, weights) in loaded.items()
    }

    @tf.function(autograph=False)
    def logits_of(tokens: Any) -> dict[str, Any]:
        return {
            name: model.extend(weights, tokens, model.initial_state(batch))[0]
            for name, (model, weights) in models.items()
        }

    places = np.argwhere(rows[:, 1:] != 0)
    chosen = places[np.sort(generator.permutation(len(places))[:contexts])]
    for begin in range(0, len(rows), batch):
        some = chosen[(chosen[:, 0] >= begin) & (chosen[:, 0] < begin + batch)]
        if not len(some):
            continue
        block = np.zeros((batch, length), np.int32)
        block[: len(rows) - begin] = rows[begin : begin + batch, :-1]
        logits = {name: value.numpy() for name, value in logits_of(tf.constant(block)).items()}
        for row, column in some:
            yield Position(int(owners[row]), {name: value[row - begin, column] for name, value in logits.items()})


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()

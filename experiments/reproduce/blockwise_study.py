"""Measures the tokens per call of blockwise decoding at temperature 0, for every way to refine the drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.head_evaluation import find_h_max
from experiments.intervals import mean_interval
from experiments.reproduce import blockwise_drafts
from experiments.reproduce.blockwise_drafts import Ints, Lattices, block_lengths, walk
from models.decoding.draft_statistics import measure_repetition, oracle_lengths
from models.decoding.drafters import Drafter
from models.decoding.katz_tables import KatzTables

HEADS = (3, 6, 9)
PATHS = (4, 16)
TOP_K = 16
"""Number of likeliest tokens of each head among which rescorers choose."""
ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
PLAIN = "heads alone"
LINES = (PLAIN, "2-gram", "4-gram", "neural")
"""The ways to draft one line of tokens, in the order of the tables."""
_ORACLES = (2, 4, 16)
WAYS = (
    *LINES,
    *(f"{order}-gram, {paths} paths" for order in (0, 2) for paths in PATHS),
    *(f"oracle, top {k}" for k in _ORACLES),
)
"""All ways, those of the oracle at the end."""
_RESAMPLES = 10_000


class Rescorers(NamedTuple):
    """Holds what refines drafts.

    Attributes:
      ngrams: Katz models by their order.
      model: a small model as a drafter.
    """

    ngrams: Mapping[int, KatzTables]
    model: Drafter


def tune(lattices: Lattices, rescorers: Rescorers) -> dict[str, float]:
    """Returns the weight α of each rescorer with the most tokens per call of all heads on some texts.

    Of equal ones the smallest is taken.
    """
    chosen = {}
    for name in LINES[1:]:
        sums = []
        for alpha in ALPHAS:
            tokens, calls = walk(_lengths(lattices, _draft(lattices, rescorers, name, alpha)))
            sums.append(tokens.sum() / calls.sum())
        chosen[name] = ALPHAS[int(np.argmax(sums))]
    return chosen


def measure(
    lattices: Lattices, rescorers: Rescorers, alphas: Mapping[str, float], heads: Sequence[int]
) -> dict[str, Any]:
    """Measures all ways to refine drafts on the texts of one kind.

    Args:
      lattices: the texts; at least 2.
      rescorers: what refines drafts.
      alphas: weight of each rescorer, by its name.
      heads: numbers of heads h to draft with, ascending, up to that of the lattices.

    Returns:
      "entropies" of the heads, "h_max", "alphas"; "tokens", for each number of heads and each way, the "tokens" per
      call and by how many percent they are a "gain" over the heads alone, with 95 % bootstrap intervals over texts in
      pairs; "repeats" of each way without several paths, and "repairs" by the 2-gram model, over all places.
    """
    lines = {PLAIN: blockwise_drafts.draft_plain(lattices)}
    lines |= {name: _draft(lattices, rescorers, name, alpha) for name, alpha in alphas.items()}
    own = lattices.following(lattices.ids.shape[2])
    tokens: dict[str, dict[str, Any]] = {}
    for count in heads:
        lengths = {name: _lengths(lattices, draft, count) for name, draft in lines.items()}
        for order, tables in ((2, rescorers.ngrams[2]), (0, None)):
            found = blockwise_drafts.draft_paths(lattices, tables, alphas["2-gram"], max(PATHS), count)
            for paths in PATHS:
                right = found[:, :, :paths] == own[:, :, np.newaxis, : count - 1]
                lengths[f"{order}-gram, {paths} paths"] = block_lengths(right).max(axis=-1)
        for k in _ORACLES:
            lengths[f"oracle, top {k}"] = count_with_oracle(lattices, k, count)
        walked = {name: walk(each) for name, each in lengths.items()}
        tokens[str(count)] = {name: _compare(each, walked[PLAIN]) for name, each in walked.items()}
    last = lattices.tokens[:, lattices.prompt - 1 :][:, : lattices.places, np.newaxis]
    with_last = {name: np.concatenate([last, draft], axis=-1) for name, draft in lines.items()}
    return {
        "texts": len(own),
        "places": lattices.places,
        "entropies": lattices.entropies.tolist(),
        "h_max": find_h_max(lattices.entropies.tolist()),
        "alphas": dict(alphas),
        "tokens": tokens,
        "repeats": {
            name: measure_repetition(drafts.reshape(-1, drafts.shape[-1]))._asdict()
            for name, drafts in with_last.items()
        },
        "repairs": repairs(with_last[PLAIN], with_last["2-gram"], own),
    }


def count_with_oracle(lattices: Lattices, k: int, heads: int) -> Ints:
    """Returns the number of tokens of a block at each place, if the best path through the k likeliest is known."""
    order = np.argsort(-lattices.logits, axis=-1, kind="stable")[..., :k]
    known = np.take_along_axis(lattices.ids, order, -1)[:, :, : heads - 1]
    texts = lattices.tokens[:, lattices.prompt :][:, : lattices.places + heads - 2]
    return np.array([oracle_lengths(*pair) for pair in zip(known, texts, strict=True)], np.int32)


def repairs(before: Ints, after: Ints, own: Ints) -> dict[str, float]:
    """Returns how often refined drafts have more right tokens, and the share of these that repair a repetition.

    Args:
      before: int32 `[..., n]`, the last known token and the drafted ones.
      after: the same after refinement.
      own: int32 `[..., n - 1]`, the text's own tokens in place of the drafted ones.

    Returns:
      "improved" and "worse", shares of all drafts; "repetitions", the share of the improved ones whose first wrong
      token repeated the token before; and "wrong_repetitions", that share of all drafts with a wrong token.
    """
    right, better = (block_lengths(drafts[..., 1:] == own) - 1 for drafts in (before, after))
    improved = better > right
    wrong = np.minimum(right + 1, before.shape[-1] - 1)[..., np.newaxis]
    is_repeat = np.take_along_axis(before, wrong, -1) == np.take_along_axis(before, wrong - 1, -1)
    return {
        "improved": float(improved.mean()),
        "worse": float((better < right).mean()),
        "repetitions": _mean(is_repeat[..., 0][improved]),
        "wrong_repetitions": _mean(is_repeat[..., 0][right < own.shape[-1]]),
    }


def _mean(values: Any) -> float:
    return float(values.mean()) if values.size else 0.0


def _draft(lattices: Lattices, rescorers: Rescorers, name: str, alpha: float) -> Ints:
    if name == "neural":
        return blockwise_drafts.draft_with_model(lattices, rescorers.model, alpha)
    return blockwise_drafts.draft_with_ngram(lattices, rescorers.ngrams[int(name[0])], alpha)


def _lengths(lattices: Lattices, draft: Ints, heads: int | None = None) -> Ints:
    drafted = lattices.ids.shape[2] if heads is None else heads - 1
    return block_lengths(draft[..., :drafted] == lattices.following(lattices.ids.shape[2])[..., :drafted])


def _compare(walked: tuple[Any, Any], plain: tuple[Any, Any]) -> dict[str, Any]:
    """Returns tokens per call, and the gain over plain drafts in percent; texts are resampled in pairs."""
    tokens, calls = (np.asarray(part, np.float64) for part in walked)
    return {"tokens": mean_interval(tokens, calls)._asdict(), "gain": _gain_interval(tokens, calls, *plain)}


def _gain_interval(*sums: Any) -> dict[str, float]:
    """Returns the gain for tokens, calls, and those of plain drafts, each of every text."""
    generator, texts = np.random.default_rng(0), len(sums[0])
    chosen = generator.integers(texts, size=(_RESAMPLES, texts))
    rows = np.concatenate([np.arange(texts)[np.newaxis], chosen])
    tokens, calls, plain_tokens, plain_calls = (np.asarray(part, np.float64)[rows].sum(axis=1) for part in sums)
    gains = 100 * (tokens * plain_calls / (calls * plain_tokens) - 1)
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    return {"estimate": float(gains[0]), "low": float(low), "high": float(high)}

"""Measures the KL and the reward of best-of-n, soft best-of-n and the tilt on texts of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.display import no_notices
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.runs import load_trained
from models.alignment import BestOfN, Candidates, Outcomes, SoftBestOfN, best_of_n_rewards, tilt_to_kl
from models.alignment import best_of_n as theory
from models.alignment.outcomes import kl_divergence
from models.alignment.policy import kl_bound
from models.alignment.rewards import Sample, load, rate
from models.text_stream import decode_stream
from models.vocabulary import EOS

REWARDS = ("total-log-likelihood", "brevity")
"""The rewards of the paper's own experiment: log-likelihood and negative length."""
NUMBERS = (2, 4, 8, 16, 32, 64)
PROMPTS = ("My lord, ", "The king ")
MESSAGES = ("What is the capital of France?", "Write the first line of a poem.")
_ROWS = 32
_NORMAL_95 = 1.959963984540054

Floats = NDArray[np.float64]


def measure_model(folder: Path, samples: int, new_tokens: int, seed: int, show: Any) -> list[dict[str, Any]]:
    """Draws a pool of texts for each prompt, and measures policies on it for each reward.

    Args:
      folder: folder of a trained or imported model. One with a chat template answers `MESSAGES`, another continues
        `PROMPTS`.
      samples: number of texts of each pool, at least the largest of `NUMBERS`. D̂ leaves out those after the last full
        group of n.
      new_tokens: maximum number of tokens of a text; a longer one is cut and counts as a text.
      seed: seed of the draws.
      show: display for progress.

    Returns:
      For each prompt and reward a row with "distinct" texts of the pool, "numbers", for each n what `_compare` returns,
      and "curves" of expected reward by KL for each policy.

    Raises:
      OSError, ValueError: the model cannot be read; one line.
    """
    from models.decoding.choices import Choices
    from models.decoding.generator import Generator
    from models.heads import without_heads

    model, weights, vocabulary = load_trained(folder)
    model, weights = without_heads(model, weights)
    try:
        prompts = {message: vocabulary.chat(message) for message in MESSAGES}
    except ValueError:
        prompts = {text: vocabulary.prompt(text) for text in PROMPTS}
    rows = []
    for text, tokens in prompts.items():
        generator = Generator(model, weights, max_prompt=len(tokens), max_new_tokens=new_tokens)
        pool: list[Sample] = []
        while len(pool) < samples:
            show.note(f"{folder.name}, {text!r}: text {len(pool)} of {samples} …")
            choices = Choices(new_tokens, seed=seed, request=len(pool), stop=EOS)
            with no_notices():  # of TensorFlow, when the graph is built
                drawn = generator([tokens], choices, num_samples=min(_ROWS, samples))
            sums = (
                np.array([min(sum(row), 0.0) for row in part])
                for part in (drawn.log_probs, drawn.unprocessed_log_probs)
            )
            for ids, *log_probs in zip(drawn.tokens, *sums, strict=True):
                pool.append(Sample(text, "".join(decode_stream(vocabulary, ids)), tokens, ids, *log_probs))
        pool = pool[:samples]
        for name in REWARDS:
            rewards = rate(load(name, vocabulary.digest), pool, name)
            rows.append({"model": folder.name, "prompt": text, "reward": name, **measure_pool(pool, rewards)})
    return rows


def measure_pool(pool: Sequence[Sample], rewards: Floats) -> dict[str, Any]:
    """Returns what `measure_model` says of one pool of texts and their rewards `[M]`."""
    empirical = Outcomes(np.full(len(pool), 1 / len(pool)), rewards)
    expected = best_of_n_rewards(rewards)
    numbers = [_compare(pool, rewards, n) | {"reward": float(expected[n - 1])} for n in NUMBERS]
    span = float(rewards.max() - rewards.min()) or 1.0
    soft = []
    for share in (1.0, 0.3, 0.1, 0.03, 0.01):
        chosen = SoftBestOfN(max(NUMBERS), share * span).distribution(empirical)
        soft.append([kl_divergence(chosen, empirical.probabilities), float(chosen @ rewards)])
    best = max(row["kl"]["estimate"] for row in numbers)
    tilts = [tilt_to_kl(empirical, share * best) for share in np.linspace(0, 1, 12) ** 2]
    return {
        "samples": len(pool),
        "distinct": len({tuple(sample.tokens) for sample in pool}),
        "numbers": numbers,
        "curves": {
            "best-of-n": [[row["kl"]["estimate"], row["reward"]] for row in numbers],
            "best-of-n, KL by the formula": [[row["formula"], row["reward"]] for row in numbers],
            f"soft best-of-{max(NUMBERS)}": soft,
            "tilt": [[one.kl, one.reward] for one in tilts],
        },
    }


def pool_kl(rewards: Floats, n: int) -> dict[str, float]:
    """Returns the KL of best-of-n with a 95 % interval, from the rewards `[M]` of independent texts.

    It is the exact KL if each text of the pool has probability 1/M. So only equal rewards bring it below the formula
    log n - (n - 1)/n: where all rewards differ, it is the formula less some (n - 1)²/(24 M²), whatever the model is.
    The interval is the normal one with the jackknife's standard error, over the M pools that lack one text (Efron and
    Stein 1981). It has no width where all rewards differ.
    """
    levels, counts = np.unique(rewards, return_counts=True)
    size = len(rewards)

    def kl(counts: NDArray[np.intp]) -> float:
        return theory.kl(Outcomes(counts / counts.sum(), levels), n)

    found, bound = kl(counts), kl_bound(n)
    if len(levels) == size:
        return {"estimate": found, "low": found, "high": found}
    without = np.array([kl(counts - (np.arange(len(levels)) == level)) for level in range(len(levels))])
    error = np.sqrt((size - 1) / size * (counts @ (without - counts @ without / size) ** 2))
    half = _NORMAL_95 * float(error)
    return {"estimate": found, "low": max(0.0, found - half), "high": min(bound, found + half)}


def _compare(pool: Sequence[Sample], rewards: Floats, n: int) -> dict[str, Any]:
    """Returns the KL of best-of-n from the whole pool, its estimate D̂ from groups of n texts, and the formula.

    D̂ needs the model's probabilities, and the KL the rewards only. D̂ has no interval if there are fewer than 32 groups.
    """
    logs = []
    for begin in range(0, len(pool) - n + 1, n):
        group = pool[begin : begin + n]
        candidates = Candidates(
            [tuple(sample.tokens) for sample in group],
            rewards[begin : begin + n],
            [sample.log_prob for sample in group],
        )
        logs.append(candidates.log_probability(BestOfN(n).select(candidates, begin)))
    estimate = theory.estimate_kl(logs, n)
    low, high = estimate.interval or (None, None)
    return {
        "n": n,
        "kl": pool_kl(rewards, n),
        "estimate": {"estimate": estimate.kl, "low": low, "high": high},
        "formula": estimate.bound,
    }


def format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    first = rows[0]
    cells = []
    for row in rows:
        pool = (row["model"], row["prompt"].strip(), row["reward"], f"{row['distinct']:,}")
        for own in row["numbers"]:
            if own["n"] in (4, 16, 64):
                kls = (_format(own["kl"]), _format(own["estimate"]), f"{own['formula']:.3f}")
                cells.append((*pool, own["n"], f"{own['reward']:.2f}", *kls))
    columns = ("distinct texts", "n", "expected reward", "KL", "mean of D̂", "log n - (n - 1)/n")
    return [
        "### On language models",
        "",
        f"In nats, {first['samples']:,} texts per prompt. The KL is computed from all texts; D̂ from groups of n, as a "
        "user has them. 95 % intervals.",
        "",
        *markdown_table(("model", "prompt", "reward", *columns), cells),
    ]


def _format(value: Mapping[str, Any]) -> str:
    """Returns an estimate with its interval, if it has one."""
    if value["low"] is None:
        return f"{value['estimate']:.3f}"
    return format_interval(value, 3)

"""Measures couplings where the answer is known: made-up pairs, the worst pairs, and the cost of few messages."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.intervals import share_interval
from models.decoding import couplings, exchange

WORST_SIZES = (3, 4, 5, 6)
_SIZES, _NOISES = (50, 1000), (0.25, 0.5, 1.0, 2.0)
_EXCHANGE_SIZES, _ERRORS = (16, 64, 256, 1024, 4096, 16_384), (0.1, 0.03, 0.01)


def made_up_pairs(pairs: int, seed: int) -> list[dict[str, float]]:
    """Returns mean agreements over pairs of distributions with normal logits.

    The target's logits have standard deviation 2. The drafter's are the target's plus normal noise.

    Args:
      pairs: number of pairs for each row, > 0.
      seed: seed of the logits.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for size, noise in itertools.product(_SIZES, _NOISES):
        values = []
        for _ in range(pairs):
            p, q = _pair(size, noise, generator)
            values.append(
                [
                    couplings.total_variation(p, q),
                    couplings.bound(p, q),
                    couplings.darts_agreement(p, q),
                    couplings.race_agreement(p, q),
                ]
            )
        variation, bound, minhash, gumbel = (float(value) for value in np.mean(values, axis=0))
        rows.append(
            {
                "tokens": size,
                "noise": noise,
                "total_variation": variation,
                "bound": bound,
                "minhash": minhash,
                "gumbel": gumbel,
                "maximal": 1 - variation,
            }
        )
    return rows


def worst_pairs(size: int) -> dict[str, float]:
    """Searches all protocols without messages on the family of pairs for which the bound is sharp.

    Distribution i of the family is uniform on all tokens but i. A value of the common random numbers fixes which token
    f(i) != i a party with distribution i draws. So the average agreement over all pairs of the family is at most the
    largest one among all maps f, whatever the protocol. All (n - 1)**n maps are tried.

    Args:
      size: number of tokens n, 3 to 6.

    Returns:
      The largest average agreement of a protocol, the bound (1 - TV) / (1 + TV), the agreement of the race, and 1 - TV.
    """
    family = (1 - np.eye(size)) / (size - 1)
    # A number from 0 to n - 2 stands for f(i): itself if it is below i, otherwise itself plus 1.
    maps = np.array(list(itertools.product(range(size - 1), repeat=size)))
    maps += maps >= np.arange(size)
    pairs = list(itertools.combinations(range(size), 2))
    agreements = np.mean([maps[:, i] == maps[:, j] for i, j in pairs], axis=0)
    p, q = family[0], family[1]
    return {
        "tokens": size,
        "maps": len(maps),
        "best": float(agreements.max()),
        "bound": couplings.bound(p, q),
        "gumbel": couplings.race_agreement(p, q),
        "maximal": 1 - couplings.total_variation(p, q),
    }


def few_messages(draws: int, seed: int) -> dict[str, Any]:
    """Measures agreement and bits of `models.decoding.exchange.exchange`, and fits the bits by a + b log2(n / error).

    Args:
      draws: number of pairs of tokens for each row, > 0.
      seed: seed of the distributions and of the draws.

    Returns:
      The rows, and slope and intercept of the least-squares line with 95 % intervals of Student's t.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for size in _EXCHANGE_SIZES:
        p, q = _pair(size, 1.0, generator)
        for error in _ERRORS:
            found = exchange.exchange(p, q, error, generator, draws)
            bits = found.bits
            rows.append(
                {
                    "tokens": size,
                    "error": error,
                    "maximal": 1 - couplings.total_variation(p, q),
                    "agreement": exchange.exchange_agreement(p, q, error),
                    "drawn": share_interval(int(np.sum(found.alice == found.bob)), draws)._asdict(),
                    "bits": float(bits.mean()),
                    "half": 1.96 * float(bits.std()) / draws**0.5,
                    "largest": int(bits.max()),
                }
            )
    logarithms = np.array([np.log2(row["tokens"] / row["error"]) for row in rows])
    return {"rows": rows, "fit": fit_line(logarithms, np.array([row["bits"] for row in rows]))}


def fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    """Fits y = intercept + slope x by least squares, with 95 % intervals of Student's t.

    Args:
      x: float64 `[points]`, at least three, not all equal.
      y: float64 `[points]`.
    """
    from scipy.stats import linregress, t

    line = linregress(x, y)
    factor = float(t.ppf(0.975, len(x) - 2))

    def interval(estimate: float, error: float) -> dict[str, float]:
        return {"estimate": estimate, "low": estimate - factor * error, "high": estimate + factor * error}

    return {
        "slope": interval(float(line.slope), float(line.stderr)),
        "intercept": interval(float(line.intercept), float(line.intercept_stderr)),
        "largest_residual": float(np.abs(y - line.intercept - line.slope * x).max()),
    }


def _pair(size: int, noise: float, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    logits = 2 * generator.standard_normal(size)
    masses = [np.exp(x) for x in (logits, logits + noise * generator.standard_normal(size))]
    return masses[0] / masses[0].sum(), masses[1] / masses[1].sum()

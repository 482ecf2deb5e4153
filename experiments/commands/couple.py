"""Defines `fedspeak couple`: how often two parties with their own distributions draw the same token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments.intervals import Interval, share_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_DRAWS, _NUMBERS = 10_000, 20_000_000
_ELEMENTS = 1 << 20  # numbers in memory at a time


@click.command()
@click.argument("p_path", metavar="P.json", type=click.Path(path_type=Path))
@click.argument("q_path", metavar="Q.json", type=click.Path(path_type=Path))
@click.option(
    "--draws",
    type=click.IntRange(1, 10_000_000),
    default=None,
    help="Number of pairs of tokens to draw by each protocol.  [default: 10000, fewer for more than 2000 tokens]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--error",
    type=float,
    default=0.01,
    show_default=True,
    help="How much the protocol with few messages may fall short of the best agreement, above 0 and below 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def couple(p_path: Path, q_path: Path, draws: int | None, seed: int, error: float, as_json: bool) -> None:
    """Compute how often two parties draw the same token, one from P.json and the other from Q.json.

    Each file holds a JSON list of probabilities, or an object from token to probability. The protocols without messages
    need only a common seed. Prints the exact agreement of each protocol and a measured one with its 95 % interval.
    """
    from experiments.distribution_files import read_pair
    from models.decoding import couplings
    from models.decoding.exchange import expected_bits
    from privacy import checks

    checks.between("--error", error, 0, 1, "0.01 is usual")
    p, q = read_pair(p_path, q_path)
    bits = expected_bits(p, q, error)
    draws = draws or min(_MOST_DRAWS, max(_NUMBERS // len(p), 100))
    if draws * len(p) > _NUMBERS:
        click.echo(f"drawing {draws:,} pairs of {len(p):,} tokens by each of four protocols …", err=True)
    rows = [
        {"protocol": name, "bits": messages, "agreement": agreement, "measured": share_interval(hits, draws)._asdict()}
        for name, messages, agreement, hits in measure(p, q, draws, seed, error)
    ]
    facts: dict[str, Any] = {
        "tokens": len(p),
        "total_variation": couplings.total_variation(p, q),
        "bound": couplings.bound(p, q),
        "best": 1 - couplings.total_variation(p, q),
        "error": error,
        "bits": bits,
        "draws": draws,
        "seed": seed,
        "protocols": rows,
    }
    click.echo(json.dumps(facts, indent=2) if as_json else _format(facts))


def measure(
    p: NDArray[np.float64], q: NDArray[np.float64], draws: int, seed: int, error: float
) -> list[tuple[str, float | None, float, int]]:
    """Draws pairs of tokens by each protocol.

    Args:
      p: float64 `[n]`, the first party's distribution.
      q: float64 `[n]`, the second party's distribution.
      draws: number of pairs for each protocol.
      seed: seed of all random numbers.
      error: how much the exchange may fall short of the best agreement, in (0, 1).

    Returns:
      For each protocol its name, its mean number of bits (None if it needs both distributions in one place), its exact
      agreement and the number of pairs of equal tokens.
    """
    import numpy as np

    from models.decoding import couplings, numpy_race
    from models.decoding.exchange import exchange, exchange_agreement, expected_bits
    from models.decoding.numpy_ops import LEFT_OUT, seed_words

    words, requests = seed_words(seed), np.arange(draws)
    with np.errstate(divide="ignore"):
        logits = [np.where(x > 0, np.log(x), LEFT_OUT).astype(np.float32) for x in (p, q)]
    darts = [couplings.keyed_darts(x, words, requests, 0) for x in (p, q)]
    equal_races, at_once = 0, max(_ELEMENTS // max(len(p), 512), 1)
    for begin in range(0, draws, at_once):
        noise = numpy_race.gumbels(words, requests[begin : begin + at_once], 0, len(p))
        tokens = [numpy_race.race(x, noise) for x in logits]
        equal_races += int(np.sum(tokens[0] == tokens[1]))
    exchanged = exchange(p, q, error, np.random.default_rng([seed, 1]), draws)
    pairs = couplings.maximal(p, q, np.random.default_rng([seed, 2]), draws)
    return [
        ("weighted MinHash", 0.0, couplings.darts_agreement(p, q), int(np.sum(darts[0] == darts[1]))),
        ("Gumbel race", 0.0, couplings.race_agreement(p, q), equal_races),
        (
            "exchange of few messages",
            expected_bits(p, q, error),
            exchange_agreement(p, q, error),
            int(np.sum(exchanged.alice == exchanged.bob)),
        ),
        ("maximal coupling", None, 1 - couplings.total_variation(p, q), int(np.sum(pairs[0] == pairs[1]))),
    ]


def _format(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['tokens']:,} tokens, total variation {facts['total_variation']:.4f}",
        "",
        f"{'protocol':<26}{'bits':>10}{'agreement':>12}{'measured':>10}  95 % interval",
    ]
    for row in facts["protocols"]:
        measured = Interval(**row["measured"])
        bits = f"{row['bits']:.1f}" if row["bits"] is not None else "P and Q"
        lines.append(
            f"{row['protocol']:<26}{bits:>10}{row['agreement']:>12.4f}{measured.estimate:>10.4f}"
            f"  [{measured.low:.4f}, {measured.high:.4f}]"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Bound for protocols without messages: {facts['bound']:.4f}. The two above reach it on every pair of",
            "distributions, and no protocol exceeds it on every pair.",
            f"Measured with {facts['draws']:,} draws, seed {facts['seed']}; exchange with error {facts['error']:g}.",
        ]
    )

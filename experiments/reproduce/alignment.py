"""Defines `fedspeak reproduce alignment`: how best-of-N approaches the optimal policy as texts get longer.

The study follows Yang et al., "Asymptotics of language model alignment" (https://arxiv.org/abs/2404.01730). All values
are exact; nothing is drawn.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import options
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import write_json
from models.alignment.asymptotics import best_of_exponentially_many, rate_function, total_rewards
from models.alignment.outcomes import Outcomes
from models.alignment.tilt import largest_kl, tilt_to_kl
from privacy.files import write_public

_LENGTHS = (1, 5, 10, 20, 50, 100, 200, 400)
_TAIL_LENGTHS = (50, 100, 200, 400, 800)
_TAIL_REWARD, _TAIL_POINTS = 2.6, 41
_WIDEST = 1000


@click.command("alignment")
@click.option(
    "--probabilities",
    default="0.5,0.3,0.15,0.05",
    show_default=True,
    help="Probabilities of a token's outcomes under the reference model, with commas between them.",
)
@click.option(
    "--rewards",
    default="0,1,2,4",
    show_default=True,
    help="Rewards of these outcomes: integers with commas between them. The reward of a text is the sum.",
)
@click.option(
    "--kl",
    type=float,
    default=0.4,
    show_default=True,
    help="KL budget in nats per token: above 0, and below -log of the probability of the highest reward.",
)
@click.option(
    "--tail-reward",
    type=float,
    help="Mean reward per token whose probability under the optimal policy is computed: above the policy's mean, and "
    f"at most the highest reward.  [default: {_TAIL_REWARD} if that is in this range, otherwise its middle]",
)
@options.output("runs/alignment", "the table, the plot and the results")
def alignment(probabilities: str, rewards: str, kl: float, tail_reward: float | None, output: Path) -> None:
    """Compute best-of-N for texts of m tokens and N = e^(m KL), beside the optimal policy with the same KL.

    The tokens are independent, and their rewards add up. Prints reward and KL per token, the KL from the optimal
    policy, and how fast the probability of a higher mean reward falls.
    """
    outcomes = _read_outcomes(probabilities, rewards)
    results = measure(outcomes, kl, tail_reward)
    from experiments import alignment_plots

    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **results})
    alignment_plots.convergence(output / "plot", results)
    table = format_table(results)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def measure(outcomes: Outcomes, kl: float, tail_reward: float | None = None) -> dict[str, Any]:
    """Computes best-of-N for growing lengths, its limit, and the probabilities of high mean rewards.

    Args:
      outcomes: outcomes of one token; rewards are integers and differ.
      kl: budget in nats per token, > 0 and below that of the best outcome alone.
      tail_reward: mean reward per token above the optimal policy's; None: 2.6 or the middle of the range.

    Returns:
      "optimal" has the tilt with this KL per token, "rows" a `LongText` for each length, "tail" the values of
      -log P(mean reward >= τ) / m under the tilt for τ = `tail_reward` with their limit, and "curve" the same for other
      τ. Values are in nats.

    Raises:
      ValueError: an option of the command is outside its range; one line.
    """
    most, highest = largest_kl(outcomes), float(outcomes.levels[-1])
    if not 0 < kl < most:
        raise ValueError(f"--kl = {kl}: must be above 0 and below {most:.6g}, the KL of the best outcome alone")
    best = tilt_to_kl(outcomes, kl)
    if tail_reward is None:
        in_range = best.reward < _TAIL_REWARD <= highest
        tail_reward = _TAIL_REWARD if in_range else (best.reward + highest) / 2
    if not best.reward < tail_reward <= highest:
        raise ValueError(
            f"--tail-reward = {tail_reward}: must be above {best.reward:.6g}, the optimal policy's mean reward, and at "
            f"most {highest:g}"
        )
    tilted = Outcomes(best.distribution, outcomes.rewards)
    means = np.linspace(best.reward, highest, _TAIL_POINTS).tolist()
    by_length = {tokens: rates(tilted, tokens, [tail_reward, *means]) for tokens in _TAIL_LENGTHS}
    return {
        "probabilities": outcomes.probabilities.tolist(),
        "rewards": outcomes.rewards.tolist(),
        "optimal": asdict(best) | {"distribution": best.distribution.tolist()},
        "rows": [asdict(best_of_exponentially_many(outcomes, tokens, kl)) for tokens in _LENGTHS],
        "tail": {
            "mean_reward": tail_reward,
            "rows": [{"tokens": m, "rate": values[0]} for m, values in by_length.items()],
            "limit": rate_function(tilted, tail_reward),
        },
        "curve": {
            "mean_rewards": means,
            "rows": [{"tokens": m, "rates": values[1:]} for m, values in by_length.items()],
            "limits": [rate_function(tilted, mean) for mean in means],
        },
    }


def rates(outcomes: Outcomes, tokens: int, mean_rewards: list[float]) -> list[float]:
    """Returns -log P(mean reward >= τ) / m in nats for each τ, exact but for rounding.

    Args:
      outcomes: outcomes of one token; rewards are integers.
      tokens: number m of independent tokens.
      mean_rewards: values of τ, each at most the highest reward.
    """
    totals, logs = total_rewards(outcomes, tokens)
    log_tails = np.logaddexp.accumulate(logs[::-1])[::-1]
    # Totals are integers: the margin covers the rounding of τ times m.
    first = np.searchsorted(totals, tokens * np.array(mean_rewards) - 1e-6)
    return [float(rate) for rate in np.maximum(-log_tails[first] / tokens, 0.0)]


def format_table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    best, tail = results["optimal"], results["tail"]
    pairs = zip(results["probabilities"], best["distribution"], results["rewards"], strict=True)
    policy = [(f"{reward:g}", f"{p:.6g}", f"{tilted:.8f}") for p, tilted, reward in pairs]
    cells = []
    for row in results["rows"]:
        values = [f"{row[key]:.5f}" for key in ("reward", "kl", "kl_bound")]
        distance = row["kl_to_tilt"]
        cells.append(
            (row["tokens"], _count(row["log_n"]), *values, f"{distance:.4f}", f"{distance / row['tokens']:.5f}")
        )
    columns = ("reward / m", "KL / m", "(log N - (N - 1)/N) / m", "KL(best-of-N ‖ optimal)", "the same / m")
    rates = [*((row["tokens"], f"{row['rate']:.5f}") for row in tail["rows"]), ("∞", f"{tail['limit']:.7f}")]
    lines = [
        f"### The optimal policy with {best['kl']:.6g} nats per token",
        "",
        f"Its weights are p e^(λ r) with λ = {best['reward_weight']:.10f}, and its mean reward is "
        f"{best['reward']:.10f}. A little more KL gains",
        f"1/λ = {1 / best['reward_weight']:.8f} in reward for each nat.",
        "",
        *markdown_table(("reward", "reference", "optimal policy"), policy),
        "",
        "### Best-of-N with N = e^(m KL) for texts of m tokens",
        "",
        *markdown_table(("m", "N", *columns), cells),
        f"| ∞ | | {best['reward']:.5f} | {best['kl']:.5f} | {best['kl']:.5f} | ½ log m + O(1) | 0 |",
        "",
        f"### Probability of a mean reward of {tail['mean_reward']:.6g} or more under the optimal policy",
        "",
        *markdown_table(("m", "-log P / m"), rates),
    ]
    return "\n".join(lines) + "\n"


def _count(log_n: float) -> str:
    """Returns N, which may be too large for a float, as text."""
    count = Decimal(log_n).exp()
    if count < 100_000:
        return f"{count:.3g}" if count < 1000 else f"{count:.0f}"
    return f"{count:.1e}".replace("e+", "e")


def _read_outcomes(probabilities: str, rewards: str) -> Outcomes:
    numbers = [_numbers("--probabilities", probabilities), _numbers("--rewards", rewards)]
    try:
        outcomes = Outcomes(*numbers)
    except ValueError as error:  # begins with the name of the argument, which is that of the option
        raise ValueError(f"--{error}") from None
    if any(reward != math.floor(reward) for reward in numbers[1]):
        raise ValueError(f"--rewards {rewards!r}: must be integers; multiply them by a number and round")
    span = outcomes.levels[-1] - outcomes.levels[0]
    if not 0 < span <= _WIDEST:
        raise ValueError(
            f"--rewards {rewards!r}: highest and lowest differ by {span:g} among outcomes with a probability: must be "
            f"from 1 to {_WIDEST}"
        )
    return outcomes


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: must be numbers with commas between them, such as 0.5,0.3,0.2") from None

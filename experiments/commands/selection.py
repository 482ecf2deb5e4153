"""Draws several texts for each one that is wanted, and selects those with the largest reward (`generate --best-of`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from models.decoding.acceptance import Acceptance
    from models.decoding.choices import Choices
    from models.device import DeviceModel

_COUNTS = ("calls", "decided", "drafted", "reached", "accepted")


@dataclass(frozen=True)
class Selected:
    """Holds what is known about the selected texts.

    Attributes:
      report: what `fedspeak generate --report` writes: a list "texts" and a dict "total".
      seconds: time for drawing.
      tokens: number of drawn tokens.
      acceptance: what became of the drafts; None without a report, and for a decoding without drafts.
    """

    report: dict[str, Any]
    seconds: float
    tokens: int
    acceptance: Acceptance | None

    def describe(self) -> str:
        """Returns one line about rewards, KL and speed, and one about drafts if they were examined."""
        total = self.report["total"]
        kl = f"KL from the model {total['kl']:.3f} nats (estimated from the selected texts' probabilities"
        if total["kl_interval"] is not None:
            low, high = total["kl_interval"]
            kl += f", [{low:.3f}, {high:.3f}]"
        else:
            kl += ", too few for an interval"
        kl += f"; at most {total['kl_bound']:.3f})"
        if total["tied"]:
            texts = len(self.report["texts"])
            kl += (
                f"; that is too much, since for {total['tied']} of {texts} selections several texts had the best reward"
            )
        how = "together" if total["is_together"] else "one after another; export with --best-of to draw them together"
        drafts = "" if self.acceptance is None else f"\n{self.acceptance}"
        return (
            f"best of {total['n']} by {total['reward_name']}: reward {total['reward']:.4g}, mean of all "
            f"{total['mean_reward']:.4g}; {kl}; {self.tokens} tokens, "
            f"{self.tokens / self.seconds:,.0f} tokens/s ({how}){drafts}"
        )


def select(
    model: DeviceModel,
    prompt: Sequence[int],
    choices: Sequence[Choices],
    n: int,
    reward_name: str,
    prompt_text: str,
    write: Callable[[str], None],
    with_acceptance: bool = False,
    **options: Any,
) -> Selected:
    """Selects the best of n texts for each of some choices, and writes each as soon as it is selected.

    Args:
      model: the exported model.
      prompt: token ids of the prompt.
      choices: how to draw; the text numbered i has the request numbers i n, i n + 1, ….
      n: number of texts of each selection.
      reward_name: name of the reward, for `models.alignment.rewards.load`.
      prompt_text: the prompt as text, for the reward.
      write: is called with each selected text.
      with_acceptance: whether to report what became of the drafts of all texts, if the decoding makes any. For "spectr"
        each text is drawn once more, block by block, after all others: the share of the best rule's acceptance is that
        of these draws, in which the model may round otherwise than in draws of several texts together.
      **options: decoding and costs, for `models.device.DeviceModel.draw_samples`.

    Raises:
      OSError, ValueError: the reward or an option does not fit; one line.
    """
    from models.alignment import BestOfN, Candidates, rewards
    from models.alignment.best_of_n import estimate_kl, kl_estimator
    from models.alignment.policy import kl_bound
    from models.alignment.pools import best_of_n_rewards
    from models.decoding.acceptance import Acceptance
    from models.text_stream import decode_stream

    chosen = options.get("decoding") or model.facts.decodings[0]
    sys.path.append(os.getcwd())  # where a function of the user's own may stand
    reward = rewards.load(reward_name, model.vocabulary.digest)
    rows, seconds, count = [], 0.0, 0
    parts: list[Acceptance] = []
    for number, own in enumerate(choices):
        begin = time.perf_counter()
        drawn = model.draw_samples(prompt, replace(own, request=number * n), n, **options)
        seconds += time.perf_counter() - begin
        if with_acceptance and "drafted" in drawn[0]:
            parts += [
                Acceptance.from_counts({name: row[name][np.newaxis] for name in _COUNTS}, chosen == "tree")
                for row in drawn
            ]
        samples = []
        for row in drawn:
            tokens = row["tokens"].tolist()
            text = "".join(decode_stream(model.vocabulary, tokens))
            sums = (float(np.sum(row[name], dtype=np.float64)) for name in ("log_probs", "unprocessed_log_probs"))
            samples.append(rewards.Sample(prompt_text, text, prompt, tokens, *(min(value, 0.0) for value in sums)))
            count += len(tokens)
        values = rewards.rate(reward, samples, reward_name)
        candidates = Candidates([tuple(one.tokens) for one in samples], values, [one.log_prob for one in samples])
        best = BestOfN(n).select(candidates, own.seed + (number << 64))  # ties of each text have noise of their own
        log_probability = candidates.log_probability(best)
        write(samples[best].text)
        rows.append(
            {
                "selected": best,
                "text": samples[best].text,
                "reward": float(values[best]),
                "rewards": values.tolist(),
                "distinct": len(set(candidates.samples)),
                "tied": len({candidates.samples[i] for i in np.flatnonzero(values == values[best])}),
                "log_probability": log_probability,
                "kl": float(kl_estimator([log_probability], n)[0]),
                "kl_bound": kl_bound(n),
                "expected_rewards": best_of_n_rewards(values).tolist(),
            }
        )
    estimate = estimate_kl([row["log_probability"] for row in rows], n)
    total = {
        "n": n,
        "reward_name": reward_name,
        "reward": float(np.mean([row["reward"] for row in rows])),
        "mean_reward": float(np.mean([row["rewards"] for row in rows])),
        "kl": estimate.kl,
        "kl_interval": estimate.interval,
        "kl_bound": estimate.bound,
        "tied": sum(row["tied"] > 1 for row in rows),
        "is_together": n == model.facts.best_of,
    }
    acceptance = Acceptance.total(parts) if parts else None
    if acceptance is not None:
        if chosen == "spectr":
            requests = [replace(own, request=i * n + j) for i, own in enumerate(choices) for j in range(n)]
            acceptance = replace(acceptance, **_compare(model, prompt, requests, **options))
        total["acceptance"] = acceptance.to_dict()
    return Selected({"texts": rows, "total": total}, seconds, count, acceptance)


def _compare(model: DeviceModel, prompt: Sequence[int], requests: Sequence[Choices], **options: Any) -> dict[str, Any]:
    """Returns the sums of `Acceptance` by which K-SEQ is compared with the best rule, from draws block by block."""
    from models.device_blocks import BlockDraw

    sums = {"by_k_seq": 0.0, "by_best": 0.0}
    for one in requests:
        (draw,) = model.draws(prompt, [one], compare=True, **options)
        assert isinstance(draw, BlockDraw)
        for _ in draw:
            draw.compare()
        found = draw.acceptance
        sums = {name: value + getattr(found, name) for name, value in sums.items()}
    return sums

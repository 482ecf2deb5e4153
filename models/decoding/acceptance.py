"""Reports how many drafted tokens were accepted, with NumPy alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Acceptance:
    """Counts what became of the drafts of one request, or of several together.

    Attributes:
      calls: number of calls of the target, one per block.
      decided: number of tokens that these gave. Tokens after the end of a text count too.
      drafted: for each place of a draft, in how many blocks a token was drafted there.
      reached: in how many of these blocks all tokens before the place were accepted.
      accepted: in how many of these the token at the place was accepted too.
      by_k_seq: sum over the calls of the probability with which K-SEQ accepts one of the drafts' first tokens; 0 where
        it was not measured.
      by_best: the same for the best rule for these drafts (`models.decoding.transport.optimal_acceptance`).
      is_best: whether the rule is proved to accept a first token as often as the best rule for its drafts.
    """

    calls: int
    decided: int
    drafted: tuple[int, ...]
    reached: tuple[int, ...]
    accepted: tuple[int, ...]
    by_k_seq: float = 0.0
    by_best: float = 0.0
    is_best: bool = False

    @classmethod
    def from_counts(cls, counts: Mapping[str, Any], is_best: bool = False) -> "Acceptance":
        """Sums counts over rows.

        Args:
          counts: arrays by the names of `models.decoding.loop.Counts`, with the row axis first.
          is_best: as in `Acceptance`.
        """
        places: dict[str, Any] = {
            name: tuple(int(n) for n in np.sum(counts[name], axis=0)) for name in ("drafted", "reached", "accepted")
        }
        compared = counts.get("compared", ())
        by_k_seq, by_best = np.sum(compared, axis=0).tolist() if len(compared) else (0.0, 0.0)
        calls, decided = int(np.sum(counts["calls"])), int(np.sum(counts["decided"]))
        return cls(calls, decided, **places, by_k_seq=by_k_seq, by_best=by_best, is_best=is_best)

    @classmethod
    def total(cls, parts: Iterable["Acceptance"]) -> "Acceptance":
        """Returns the sum of several counts with equally long drafts, at least one."""
        parts = list(parts)
        places: dict[str, Any] = {
            name: tuple(map(sum, zip(*(getattr(part, name) for part in parts), strict=True)))
            for name in ("drafted", "reached", "accepted")
        }
        names = ("calls", "decided", "by_k_seq", "by_best")
        sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in names}
        return cls(**sums, **places, is_best=all(part.is_best for part in parts))

    @property
    def block_efficiency(self) -> float:
        """Returns the mean number of tokens per call of the target, the one after the draft included; or NaN."""
        return self.decided / self.calls if self.calls else float("nan")

    @property
    def block_efficiency_interval(self) -> tuple[float, float]:
        """Returns a 95 % normal interval of `block_efficiency`, with blocks as independent; NaN below two calls."""
        if self.calls < 2:
            return float("nan"), float("nan")
        tokens, blocks = np.arange(len(self.lengths)) + 1, np.array(self.lengths)
        variance = np.sum(blocks * (tokens - self.block_efficiency) ** 2) / (self.calls - 1)
        half = _NORMAL_95 * float(np.sqrt(variance / self.calls))
        return self.block_efficiency - half, self.block_efficiency + half

    @property
    def lengths(self) -> tuple[int, ...]:
        """Returns in how many blocks 0, 1, …, G drafted tokens were accepted."""
        bounds = (self.calls, *self.accepted, 0)
        return tuple(one - more for one, more in zip(bounds, bounds[1:], strict=False))

    @property
    def conditional_rates(self) -> tuple[float, ...]:
        """Returns for each place the share of accepted tokens among those reached; NaN where none was."""
        return tuple(_divide(a, b) for a, b in zip(self.accepted, self.reached, strict=True))

    @property
    def unconditional_rates(self) -> tuple[float, ...]:
        """Returns for each place the share of accepted tokens among all drafted ones; NaN where none was."""
        return tuple(_divide(a, b) for a, b in zip(self.accepted, self.drafted, strict=True))

    @property
    def acceptance_rate(self) -> float:
        """Returns the share of accepted tokens among all drafted ones, over all places; it falls with longer drafts."""
        return _divide(sum(self.accepted), sum(self.drafted))

    @property
    def of_optimum(self) -> float:
        """Returns the acceptance of first tokens as a share of the best rule's; NaN where it is not known."""
        if self.is_best and any(self.drafted):
            return 1.0
        return self.by_k_seq / self.by_best if self.by_best else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Returns counts, rates and the histogram of accepted lengths as a JSON-serialisable dict; NaN as None."""
        return {
            "calls": self.calls,
            "decided": self.decided,
            "drafted": list(self.drafted),
            "reached": list(self.reached),
            "accepted": list(self.accepted),
            "block_efficiency": _or_none(self.block_efficiency),
            "block_efficiency_interval": [_or_none(bound) for bound in self.block_efficiency_interval],
            "accepted_lengths": list(self.lengths),
            "conditional_rates": [_or_none(rate) for rate in self.conditional_rates],
            "unconditional_rates": [_or_none(rate) for rate in self.unconditional_rates],
            "acceptance_rate": _or_none(self.acceptance_rate),
            "of_optimum": _or_none(self.of_optimum),
            "is_best": self.is_best,
        }

    def __str__(self) -> str:
        low, high = self.block_efficiency_interval
        interval = f" [{low:.2f}, {high:.2f}]" if self.calls > 1 else ""
        text = f"{self.block_efficiency:.2f}{interval} tokens per target call over {self.calls} calls"
        if not sum(self.drafted):
            return f"{text}, nothing drafted"
        rates = ", ".join("-" if rate != rate else f"{rate:.0%}" for rate in self.conditional_rates)
        text = f"{text}; accepted {self.acceptance_rate:.0%} of the drafted tokens, by place once reached: {rates}"
        if self.is_best:
            return f"{text}; the rule accepts {self.of_optimum:.0%} of the optimum for its drafts, as is proved"
        return f"{text}; K-SEQ accepts {self.of_optimum:.1%} of the optimum" if self.by_best else text


def _divide(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _or_none(value: float) -> float | None:
    return value if value == value else None

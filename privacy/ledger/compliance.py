"""Checks whether a round complies with the plan, both when the round is recorded and when a ledger is read."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize

# The ledger holds noise and clip norm as 64-bit floats; the training loop may have computed them in 32 bits.
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Round:
    """Describes one recorded round.

    Attributes:
      round: index of the round, from 0.
      cohort: sorted ids of the clients whose updates are in the sum.
      noise_id: name of the noise, different for each round.
      noise_stddev: standard deviation of the noise on each coordinate of the sum.
      clip_norm: clip norm of the round; None if the plan does not clip.
      facts: further JSON-able facts, for the operator only.
    """

    round: int
    cohort: tuple[str, ...]
    noise_id: str
    noise_stddev: float
    clip_norm: float | None
    facts: Mapping[str, Any]


@dataclasses.dataclass
class History:
    """Holds what the check of a round needs to know about earlier rounds.

    Attributes:
      rounds: number of rounds recorded.
      participations: for each client, the number of rounds it took part in.
      last_seen: for each client, the last round it took part in.
      noise_ids: for each name of a round's noise, that round.
    """

    rounds: int = 0
    participations: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    last_seen: dict[str, int] = dataclasses.field(default_factory=dict)
    noise_ids: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, entry: Round) -> None:
        """Adds a round that was checked."""
        self.rounds += 1
        self.noise_ids[entry.noise_id] = entry.round
        self.participations.update(entry.cohort)
        self.last_seen.update(dict.fromkeys(entry.cohort, entry.round))


def check(plan: PrivacyPlan, history: History, entry: Round) -> None:
    """Raises ValueError unless round `entry` may follow `history` under `plan`.

    The message is one line that names the round, the value and the fix.
    """
    for breach in _check_order(plan, history, entry):
        raise ValueError(f"round {entry.round}: {breach}")
    for breach in _check_cohort(plan, history, entry):
        raise ValueError(f"round {entry.round}: {breach}")
    for breach in _check_noise(plan, history, entry):
        raise ValueError(f"round {entry.round}: {breach}")


def _check_order(plan: PrivacyPlan, history: History, entry: Round) -> Iterator[str]:
    if history.rounds >= plan.rounds:
        yield f"the plan has {plan.rounds} rounds and all are recorded: plan more rounds in a new run"
    if isinstance(entry.round, bool) or not isinstance(entry.round, int) or entry.round != history.rounds:
        yield f"out of order, round {history.rounds} comes next: record rounds one by one, from 0 on"


def _check_cohort(plan: PrivacyPlan, history: History, entry: Round) -> Iterator[str]:
    repeated = [client for client, count in collections.Counter(entry.cohort).items() if count > 1]
    if repeated:
        yield f"client {repeated[0]!r} is in the cohort twice: a cohort is a set of clients"
    size = len(entry.cohort)
    if isinstance(plan.sampling, FixedSize) and size != plan.sampling.size:
        yield f"cohort of {size} clients, the plan's fixed size is {plan.sampling.size}: draw that many"
    if isinstance(plan.sampling, CheckIn) and size > plan.sampling.size:
        yield f"cohort of {size} clients, the plan has at most {plan.sampling.size}: take fewer"
    separation, limit = plan.participation
    for client in entry.cohort:
        last = history.last_seen.get(client, entry.round - separation)
        if entry.round - last < separation:
            yield (
                f"client {client!r} took part in round {last}, the plan allows it again from round "
                f"{last + separation}: cohorts must take turns"
            )
        elif isinstance(plan.sampling, (Cyclic, CyclicPoisson)) and (entry.round - last) % separation:
            yield (
                f"client {client!r} took part in round {last}, which is the turn of another of the {separation} "
                "cohorts: keep one fixed partition of the clients into cohorts"
            )
        if history.participations[client] >= limit:
            yield f"client {client!r} took part in {limit} rounds, the plan allows no more: leave it out"
    new = sum(client not in history.last_seen for client in entry.cohort)
    seen = len(history.last_seen) + new
    if seen > plan.population and not plan.any_population:
        yield f"{seen} different clients seen, the plan's population is {plan.population}: correct the population"


def _check_noise(plan: PrivacyPlan, history: History, entry: Round) -> Iterator[str]:
    if plan.clip is None:
        if entry.clip_norm is not None or entry.noise_stddev != 0:
            yield "the plan neither clips nor adds noise: record clip_norm None and noise_stddev 0"
        return
    if entry.clip_norm is None or not entry.clip_norm > 0 or math.isinf(entry.clip_norm):
        yield f"clip_norm must be a finite number above 0, got {entry.clip_norm}: record the one that was used"
        return
    if isinstance(plan.clip, FixedClip) and not math.isclose(entry.clip_norm, plan.clip.clip_norm, rel_tol=TOLERANCE):
        yield f"clip_norm {entry.clip_norm:g} is not the plan's {plan.clip.clip_norm:g}: clip as planned"
    planned = plan.value_noise_multiplier * entry.clip_norm
    if not math.isclose(entry.noise_stddev, planned, rel_tol=TOLERANCE):
        yield (
            f"noise_stddev {entry.noise_stddev:g} is not the plan's {plan.value_noise_multiplier:g} * clip_norm "
            f"{entry.clip_norm:g} = {planned:g}: add the noise planned"
        )
    if plan.is_private and entry.noise_id in history.noise_ids:
        earlier = history.noise_ids[entry.noise_id]
        yield f"noise_id {entry.noise_id!r} was used in round {earlier}: draw the noise of each round afresh"

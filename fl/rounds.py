"""The round loop: draw a cohort, write it to the ledger, train, save the state, then show the metrics. In that order.

The order is the privacy contract. The ledger line stands on disk before anything of the round is released; the state is
saved before its metrics; cohort and noise follow from (secret key, round) alone. So a run killed at any moment and
resumed gives the same weights, ledger and metrics, bit for bit, and no round's noise is ever drawn twice with different
values.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl import checkpoints, divergence, round_metrics
from fl.cohorts import draw_cohort
from fl.local_training import Batches, LocalSGD
from privacy import files
from privacy.json_values import plain
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan

log = logging.getLogger(__name__)

Evaluated = tuple[dict[str, float], dict[str, float]]
"""Losses on clients outside training, and values read from training clients, which are for the operator's eyes only."""


@dataclass(frozen=True)
class Federation:
    """All that a run's rounds depend on.

    Attributes:
      process: a TFF iterative process of `fl.engines`, or what answers `initialize` and `next` as it does.
      client_values: the engine's: client values from the batches of a cohort.
      plan: the promise; its sampling draws the cohorts, its noise and clip are what the process was built with.
      keys: the operator's secrets.
      clients: ids of the population, in a fixed order.
      sequences: int32 [n, T+1], all training sequences of the client with that index.
      local: the local training that `process` was built with.
      inputs: names all that a round's result follows from besides plan and keys (data, starting weights, settings), for
        instance a digest. It stands in the ledger: a run does not go on with other inputs, since the same noise on two
        different updates would show their difference.
      noise: the engine's: from keys and round to what `process.next` takes as noise.
    """

    process: Any
    client_values: Callable[[Sequence[Batches]], list[Any]]
    plan: PrivacyPlan
    keys: RunKeys
    clients: Sequence[str]
    sequences: Callable[[int], np.ndarray]
    local: LocalSGD
    inputs: str
    noise: Callable[[RunKeys, int], Any] = lambda keys, number: keys.noise_seed(number)

    def __post_init__(self) -> None:
        if len(self.clients) != self.plan.population and not self.plan.any_population:
            raise ValueError(
                f"the plan promises a population of {self.plan.population} clients and there are {len(self.clients)}: "
                "make the plan from the clients at hand"
            )

    def batches(self, cohort: np.ndarray, round_number: int) -> list[Batches]:
        """The cohort's batches, client by client."""
        seed = self.keys.sampler_seed(round_number)
        return [self.local.batches(self.sequences(int(client)), seed, int(client)) for client in cohort]


@dataclass(frozen=True)
class RoundLog:
    """Where a run keeps its state: `ledger.jsonl`, `metrics.jsonl` and `checkpoints/` in one folder."""

    folder: Path
    keep_checkpoints: int = 3

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def run_rounds(
    federation: Federation,
    run: RoundLog,
    evaluate: Callable[[int, Any], Evaluated],
) -> Iterator[dict[str, Any]]:
    """Runs (or resumes) all rounds of the plan; needs a TFF runtime (`fl.runtime.local_runtime`).

    Args:
      federation: what to run.
      run: where its state is; an existing state is resumed.
      evaluate: (rounds done, averaged weights) -> what to add to that round's metrics: (evaluation, operator), both
        {} on rounds without evaluation. Must depend on nothing else.

    Yields:
      One row of metrics for every round from the resumed one on, after it is safely on disk: `round` (from 1: rounds
      done), `released`, `operator` (exact, for the operator's eyes only) and `evaluation`. A value that is not finite
      is None, `null` in the file: JSON has neither NaN nor infinities.

    Raises:
      ValueError: a damaged or foreign checkpoint, a ledger or keys that do not fit, or weights that are not finite.
      OSError: the disk is full or read-only; the run can be resumed once that is mended.
    """
    plan, keys = federation.plan, federation.keys
    run.folder.mkdir(parents=True, exist_ok=True)
    files.close_all_to_others(run.checkpoints)
    require_ledger(run)
    with Ledger.open(run.ledger, plan) as ledger:
        state = federation.process.initialize()
        saved = checkpoints.load_latest(run.checkpoints, state)
        start = 0
        if saved is not None:
            start, state = saved.round, saved.state
            if len(ledger.rounds) < start:
                raise ValueError(
                    f"ledger {run.ledger} holds {len(ledger.rounds)} rounds and the checkpoint is of round {start}: "
                    "restore the ledger, epsilon cannot be computed without it"
                )
            if ledger.head_after(start) != saved.document["ledger_head"]:
                raise ValueError(f"ledger {run.ledger} is not the one of this run's checkpoints: restore the run's own")
        if not keys.made(ledger.rounds):
            raise ValueError(
                f"the keys are not those of the rounds in {run.ledger}: restore this run's keys, with others noise "
                "could come twice"
            )
        if ledger.rounds and ledger.rounds[-1].facts.get("inputs") != federation.inputs:
            raise ValueError(
                f"data, starting weights or settings are not those of the rounds in {run.ledger}: bring them back, or "
                "start a new run"
            )
        if saved is None and ledger.rounds:
            log.info("replaying %d rounds of the ledger: there is no checkpoint yet", len(ledger.rounds))
        metrics = round_metrics.restore(run.metrics, start, None if saved is None else saved.document)
        for number in range(start, plan.rounds):
            cohort = draw_cohort(plan.sampling, len(federation.clients), number, keys.sampler_seed)
            clip = float(state["aggregator"]["clip"]) if plan.clip is not None else None
            ledger.record(
                round=number,
                cohort=[federation.clients[client] for client in cohort],
                noise_id=keys.noise_id(number),
                noise_stddev=plan.value_noise_multiplier * clip if clip is not None else 0.0,
                clip=clip,
                inputs=federation.inputs,
            )
            values = federation.client_values(federation.batches(cohort, number))
            state, measured = federation.process.next(state, values, federation.noise(keys, number))
            if clip is not None:
                _check_noise(measured["released"], plan, clip)
            if not measured["released"]["finite"]:
                size = sum(np.size(value) for value in state["weights"].values())
                cause = divergence.likely_cause(plan, clip, size)
                raise ValueError(f"the model's weights are not finite after round {number + 1}: {cause}")
            done = number + 1
            evaluation, operator = evaluate(done, state["average"])
            row = plain({"round": done, **measured, "evaluation": evaluation})
            row["operator"] |= plain(operator)
            metrics = metrics.after(row)
            document = {**metrics.document(row), "ledger_head": ledger.head_after(done)}
            checkpoint = checkpoints.Checkpoint(done, state, document)
            checkpoints.save(run.checkpoints, checkpoint, keep=run.keep_checkpoints)
            files.append_private(run.metrics, round_metrics.line(row))
            yield row


def require_ledger(run: RoundLog) -> None:
    """Raises FileNotFoundError if rounds were made here and their ledger is gone."""
    if not run.ledger.exists() and (checkpoints.list_files(run.checkpoints) or run.metrics.exists()):
        raise FileNotFoundError(f"ledger {run.ledger} is missing: restore it, epsilon cannot be computed without it")


def _check_noise(released: Any, plan: PrivacyPlan, clip: float) -> None:
    """The process must have used the clip norm and the noise that are in the ledger."""
    promised = {
        "clip": clip,
        "noise_stddev": plan.value_noise_multiplier * clip,
        "metric_noise_multiplier": plan.metric_noise_multiplier,
    }
    for name, value in promised.items():
        used = float(released.get(name, 0.0))
        if not math.isclose(used, value, rel_tol=1e-5):
            raise ValueError(
                f"the process used {name} {used:g} and the plan promises {value:g}: build it from the plan"
            )


def final_state(federation: Federation, run: RoundLog) -> Any:
    """The process state of the newest checkpoint. Raises FileNotFoundError if there is none."""
    saved = checkpoints.load_latest(run.checkpoints, federation.process.initialize())
    if saved is None:
        raise FileNotFoundError(f"no checkpoint in {run.checkpoints}: train the run first")
    return saved.state


def checked_metrics(run: RoundLog) -> list[dict[str, Any]]:
    """Rows of a run's `metrics.jsonl`, held against its newest checkpoint.

    They begin after round 1 if earlier ones were set aside (`set_aside_metrics`).

    Raises:
      ValueError: a row is damaged, changed or lost.
    """
    newest = checkpoints.latest_document(run.checkpoints)
    return round_metrics.check(run.metrics, *((0, None) if newest is None else newest))


def set_aside_metrics(run: RoundLog) -> bool:
    """Gives up rows that are lost: the run's metrics then begin with the newest round, whose row is in its checkpoint.

    To be called after `run_rounds` or `checked_metrics` refused the file and if no copy of it is left. What remains of
    it is kept as `metrics-until-round-N.jsonl`. Whatever reads the metrics later says that older rows are missing.

    Returns:
      Whether rows were given up; False if nothing is wrong with the file, which then stays.

    Raises:
      FileNotFoundError: there is no checkpoint, so that no row is due yet.
    """
    newest = checkpoints.latest_document(run.checkpoints)
    if newest is None:
        raise FileNotFoundError(f"no checkpoint in {run.checkpoints}: there are no metrics to set aside")
    rounds, document = newest
    try:
        round_metrics.check(run.metrics, rounds, document)
        return False
    except ValueError as error:
        log.warning("%s", error)
    aside = run.metrics.with_name(f"metrics-until-round-{rounds:06d}.jsonl")
    if run.metrics.exists():
        files.write_private(aside, run.metrics.read_bytes())
    # The checkpoint first: killed between the two, the file is still refused.
    newest_row = plain(document["metrics"])  # an earlier version wrote NaN
    begun = round_metrics.Running(first=rounds).after(newest_row)
    checkpoints.replace_document(run.checkpoints, {**document, **begun.document(newest_row)})
    files.write_private(run.metrics, round_metrics.line(newest_row))
    return True

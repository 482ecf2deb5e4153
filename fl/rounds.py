"""Runs the rounds: draws a cohort, writes it to the ledger, trains, saves the state, then shows the metrics.

The order matters for privacy. The ledger line is on disk before anything of the round is released, and the state is
saved before the round's metrics are shown. Cohort and noise follow from the secret key and the round's number alone. So
a run that is killed at any moment and resumed with the same number of shards gives the same weights, ledger and
metrics, bit for bit, and the noise of a round never takes two different values.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl import checkpoints, divergence, round_metrics
from fl.cohorts import CheckIns, draw_cohort
from fl.local_training import Batches, LocalSGD
from privacy import files
from privacy.json_values import plain
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.sampling import CheckIn

log = logging.getLogger(__name__)

Evaluated = tuple[dict[str, float], dict[str, float]]
"""(evaluation, operator): losses on clients outside training, and exact values from training clients, which only the
operator may see."""


@dataclass(frozen=True)
class Federation:
    """Holds everything that the rounds of a run depend on.

    Attributes:
      process: a TFF iterative process of `fl.engines`, or an object whose `initialize` and `next` behave the same.
      client_values: the engine's function from the batches of a cohort to its client values.
      plan: the privacy plan. Its sampling draws the cohorts. `process` must have been built from the same plan.
      keys: the secret keys of the run.
      clients: ids of the population, in a fixed order.
      sequences: function from a client's index to all its training sequences, int32 [n, T+1].
      local: settings of the local training that `process` was built with.
      inputs: identifies everything else that a round's result depends on (data, starting weights, settings), for
        instance by a digest. It is recorded in the ledger, and the run refuses to continue with other inputs, because
        the same noise on two different updates would leak their difference.
      noise: the engine's function from (keys, round) to the noise argument of `process.next`; by default the round's
        noise seed.

    Raises:
      ValueError: the number of clients is not the plan's population.
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
                f"the plan has a population of {self.plan.population} clients, but there are {len(self.clients)}: "
                "build the plan from the clients at hand"
            )

    def batches(self, cohort: np.ndarray, round_number: int) -> list[Batches]:
        """Returns the batches of each client of the cohort, in the cohort's order."""
        seed = self.keys.sampler_seed(round_number)
        return [self.local.batches(self.sequences(int(client)), seed, int(client)) for client in cohort]


@dataclass(frozen=True)
class RoundLog:
    """Names the folder in which a run keeps its state: `ledger.jsonl`, `metrics.jsonl` and `checkpoints/`.

    Attributes:
      folder: the folder.
      keep_checkpoints: number of newest checkpoints that are kept, >= 1.
    """

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
    """Runs or resumes all rounds of the plan; needs a TFF runtime (`fl.runtime.local_runtime`).

    Args:
      federation: everything that the rounds depend on.
      run: where the run keeps its state; if there is state already, the run is resumed from it.
      evaluate: called after each round as evaluate(rounds done, averaged weights). It returns two dicts: the row's
        `evaluation`, and values to add to the row's `operator`. Both are {} in rounds without evaluation. The result
        must depend on the arguments only.

    Yields:
      One row of metrics for each round, from the first or the resumed one on, after it is safely on disk: `round` (the
      number of rounds done, from 1), `released`, `operator` (exact values that only the operator may see) and
      `evaluation`. A value that is not finite is None, `null` in the file, because JSON has neither NaN nor infinities.

    Raises:
      ValueError: a checkpoint is damaged or belongs to another run; ledger, keys, inputs or metrics are not those of
        the run; the process used another clip norm or noise than the plan's; or the weights are not finite.
      OSError: the disk is full or read-only, or the ledger is missing; the run can be resumed once that is fixed.
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
                    f"ledger {run.ledger} holds {len(ledger.rounds)} rounds, but the checkpoint is of round {start}: "
                    "restore the ledger, because epsilon cannot be computed without it"
                )
            if ledger.head_after(start) != saved.document["ledger_head"]:
                raise ValueError(f"ledger {run.ledger} is not the one of this run's checkpoints: restore the run's own")
        if not keys.match(ledger.rounds):
            raise ValueError(
                f"the keys are not those of the rounds in {run.ledger}: restore this run's keys, because other keys "
                "could repeat the noise of another run"
            )
        if ledger.rounds and ledger.rounds[-1].facts.get("inputs") != federation.inputs:
            raise ValueError(
                f"data, starting weights or settings are not those of the rounds in {run.ledger}: restore them, or "
                "start a new run"
            )
        if saved is None and ledger.rounds:
            log.info("replaying %d rounds of the ledger: there is no checkpoint yet", len(ledger.rounds))
        metrics = round_metrics.restore(run.metrics, start, None if saved is None else saved.document)
        draw = _build_sampler(plan, len(federation.clients), keys)
        for number in range(start, plan.rounds):
            cohort = draw(number)
            clip = float(state["aggregator"]["clip"]) if plan.clip is not None else None
            ledger.record(
                round=number,
                cohort=[federation.clients[client] for client in cohort],
                noise_id=keys.noise_id(number),
                noise_stddev=plan.value_noise_multiplier * clip if clip is not None else 0.0,
                clip_norm=clip,
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


def _build_sampler(plan: PrivacyPlan, clients: int, keys: RunKeys) -> Callable[[int], np.ndarray]:
    """Returns the function from a round to its cohort."""
    if isinstance(plan.sampling, CheckIn):
        return CheckIns(plan.sampling, clients, keys.sampler_seed).cohort
    return functools.partial(draw_cohort, plan.sampling, clients, seed_of_round=keys.sampler_seed)


def require_ledger(run: RoundLog) -> None:
    """Raises FileNotFoundError if the run has checkpoints or metrics, but no ledger."""
    if not run.ledger.exists() and (checkpoints.list_files(run.checkpoints) or run.metrics.exists()):
        raise FileNotFoundError(
            f"ledger {run.ledger} is missing: restore it, because epsilon cannot be computed without it"
        )


def _check_noise(released: Any, plan: PrivacyPlan, clip: float) -> None:
    """Raises ValueError unless the process used the clip norm and the noise that were written to the ledger."""
    planned = {
        "clip": clip,
        "noise_stddev": plan.value_noise_multiplier * clip,
        "metric_noise_multiplier": plan.metric_noise_multiplier,
    }
    for name, value in planned.items():
        used = float(released.get(name, 0.0))
        if not math.isclose(used, value, rel_tol=1e-5):
            raise ValueError(
                f"the process used {name} {used:g}, but the plan requires {value:g}: build the process from the plan"
            )


def final_state(federation: Federation, run: RoundLog) -> Any:
    """Returns the process state of the newest checkpoint.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint is damaged, or of another model or optimizer.
    """
    saved = checkpoints.load_latest(run.checkpoints, federation.process.initialize())
    if saved is None:
        raise FileNotFoundError(f"no checkpoint in {run.checkpoints}: train the run first")
    return saved.state


def checked_metrics(run: RoundLog) -> list[dict[str, Any]]:
    """Returns the rows of a run's `metrics.jsonl` after checking them against its newest checkpoint.

    The first row is of a round after 1 if earlier rows were set aside (`set_aside_metrics`).

    Raises:
      ValueError: a row is damaged, changed or lost.
    """
    newest = checkpoints.latest_document(run.checkpoints)
    return round_metrics.check(run.metrics, *((0, None) if newest is None else newest))


def set_aside_metrics(run: RoundLog) -> bool:
    """Gives up rows that are lost: the run's metrics then begin with the newest round, whose row is in its checkpoint.

    Call this after `run_rounds` or `checked_metrics` has refused the file, if there is no copy to restore. What is left
    of the old file is kept as `metrics-until-round-N.jsonl`. Every later reading of the metrics logs that older rows
    are missing.

    Returns:
      True if rows were given up; False if the file is in order, which then stays as it is.

    Raises:
      FileNotFoundError: there is no checkpoint, so that there cannot be a lost row yet.
    """
    newest = checkpoints.latest_document(run.checkpoints)
    if newest is None:
        raise FileNotFoundError(f"no checkpoint in {run.checkpoints}: there are no metrics to set aside")
    rounds, document = newest
    try:
        round_metrics.check(run.metrics, rounds, document)
        return False
    except ValueError as error:
        log.warning("%s", str(error).replace(round_metrics.FIX, "older rows are set aside"))
    aside = run.metrics.with_name(f"metrics-until-round-{rounds:06d}.jsonl")
    if run.metrics.exists():
        files.write_private(aside, run.metrics.read_bytes())
    # The checkpoint is replaced first: after a kill between the two writes, the file is still refused.
    newest_row = plain(document["metrics"])  # an earlier version wrote NaN
    running = round_metrics.Running(first=rounds).after(newest_row)
    checkpoints.replace_document(run.checkpoints, {**document, **running.document(newest_row)})
    files.write_private(run.metrics, round_metrics.line(newest_row))
    return True

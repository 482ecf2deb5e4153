"""Trains the cells of `fedspeak reproduce si`, each by the cohort engine on TFF."""

from __future__ import annotations

import gc
import math
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from experiments import assembly, data
from experiments.config import Config
from experiments.display import ConsoleDisplay
from experiments.reproduce.si_arms import Arm, Cell, Scale, configure
from experiments.reproduce.si_choice import Row, rungs
from experiments.reproduce.si_models import MODELS, initial_weights
from experiments.runs import load_weights, save_weights
from fl.cohorts import draw_cohort

_VALIDATION_ROWS = 16
"""Maximum number of sequences of a validation client, the first ones, in an evaluation during training."""


class Trainer:
    """Trains cells, and goes on with those that it began.

    Args:
      config: the study's config.
      scale: the study's scale.
      prepared: its data.
      runtime: the TFF runtime that is installed.
      folder: where the models of the public text are kept.
      show: display of notes.
    """

    def __init__(
        self, config: Config, scale: Scale, prepared: data.Data, runtime: Any, folder: Path, show: ConsoleDisplay
    ) -> None:
        self._config, self._scale, self._data = config, scale, prepared
        self._runtime, self._folder, self._show = runtime, folder, show
        self._engines: dict[Any, Any] = {}
        self._begun: dict[Cell, tuple[Any, dict[str, Any]]] = {}
        self._evaluators: dict[Any, Any] = {}
        clients = prepared.splits
        self._sequences = [prepared.training(client) for client in clients.train]
        self._rows = {
            "validation": [prepared.whole(client)[:_VALIDATION_ROWS] for client in clients.validation],
            "test": [prepared.whole(client) for client in clients.test],
        }

    def forget(self) -> None:
        """Frees what belongs to the arm and model so far."""
        self._engines.clear()
        self._begun.clear()
        self._evaluators.clear()
        gc.collect()

    def recycle(self) -> None:
        """Replaces the worker, whose memory grows with every arm."""
        self._runtime.recycle()

    def __call__(self, arm: Arm, cell: Cell, rounds: int, is_final: bool) -> Row:
        """Trains a cell to some number of rounds.

        Args:
          arm: the cell's arm.
          cell: what to train.
          rounds: number of rounds.
          is_final: whether the test clients are evaluated at the end.

        Returns:
          The fields of the cell, and: "rounds" done; "diverged", whether the weights were no longer finite; "curve" of
          the "rounds", "loss" (nats per token, null if not finite) and "accuracy" on validation clients; "test" with
          the same of the test clients, or null; "parameters"; "moved", the distance from the initial weights relative
          to their norm, of the embedding and of all others; "within_clip", the mean share of clients whose update was
          within the clip norm, and "clip", the last clip norm (null without privacy); "seconds" and
          "processor_seconds" of the rounds.
        """
        config = configure(self._config, self._scale, arm, cell)
        model: Any = assembly.build_model(config, self._data.vocabulary.size)
        initial = self._initial(arm, cell, config, model)
        plan, keys = self._plan(config), assembly.load_keys(config, Path(), begun=False)
        engine = self._engine(config, cell, model, initial, plan)
        federation = assembly.build_federation(config, self._data, plan, keys, engine, "")
        state, row = self._begun.pop(cell, (None, {}))
        if state is None:
            state, row = _begin(engine, initial, cell.server_rate), _empty(cell, initial)
        started, processor = time.perf_counter(), self._processor_seconds()
        while row["rounds"] < rounds and not row["diverged"]:
            cohort = draw_cohort(plan.sampling, len(self._sequences), row["rounds"], keys.sampler_seed)
            values = engine.client_values(federation.batches(cohort, row["rounds"]))
            state, measured = engine.process.next(state, values, engine.noise(keys, row["rounds"]))
            row["rounds"] += 1
            row["diverged"] = not measured["released"]["finite"]
            if plan.clip is not None:
                row["clip"] = float(measured["released"]["clip"])
                row["within"].append(float(measured["operator"]["within_clip"]))
            if row["rounds"] % config.run.evaluate_every == 0 or row["rounds"] in (rounds, *rungs(config.run.rounds)):
                found = self._evaluate(model, "validation", state["average"])
                for name, value in {"rounds": row["rounds"], **found}.items():
                    row["curve"][name].append(value)
        row["seconds"] += time.perf_counter() - started
        row["processor_seconds"] += self._processor_seconds() - processor
        if is_final:
            row["test"] = self._evaluate(model, "test", state["average"])
        else:
            self._begun[cell] = state, row
        row["moved"] = _distance(initial, state["average"])
        within = row["within"]
        result = {**row, "within_clip": sum(within) / len(within) if within else None}
        return {name: value for name, value in result.items() if name != "within"}

    def _plan(self, config: Config) -> Any:
        return assembly.build_plan(config, len(self._sequences), ())

    def _initial(self, arm: Arm, cell: Cell, config: Config, model: Any) -> dict[str, np.ndarray]:
        if not arm.starts_public:
            return initial_weights(MODELS[cell.model], model, cell.seed, cell.scale)
        from experiments.public_run import train_public

        path = self._folder / f"public-{cell.model}.npz"
        if not path.exists():
            self._show.note(f"training {cell.model} on the public text …")
            save_weights(path, train_public(model, self._data.public, config, None, self._show))
        return load_weights(path, model)

    def _engine(self, config: Config, cell: Cell, model: Any, initial: dict[str, np.ndarray], plan: Any) -> Any:
        """Returns the engine of the cell, which serves all of its seeds and server rates: they are in the state."""
        from fl.engines.calibration import CANDIDATES, LARGEST_STACKED

        key = cell._replace(server_rate=0.0, seed=0, scale=1.0)
        if key not in self._engines:
            is_small = sum(value.size for value in initial.values()) <= LARGEST_STACKED
            at_once = config.run.clients_at_once or (max(CANDIDATES) if is_small else 1)
            self._engines[key] = assembly.build_engine(config, model, initial, plan, at_once)
        return self._engines[key]

    def _evaluate(self, model: Any, name: str, weights: Any) -> dict[str, float | None]:
        from fl.evaluation import Evaluator

        if name not in self._evaluators:
            self._evaluators[name] = Evaluator(model, self._rows[name])
        found = self._evaluators[name](dict(weights))
        loss = found.loss_per_token
        return {"loss": round(loss, 5) if math.isfinite(loss) else None, "accuracy": round(found.accuracy, 5)}

    def _processor_seconds(self) -> float:
        """Returns the processor time of this process and of its worker so far; on Linux."""
        worker = Path(f"/proc/{self._runtime.worker.pid}/stat").read_text().rpartition(")")[2].split()
        return time.process_time() + (int(worker[11]) + int(worker[12])) / os.sysconf("SC_CLK_TCK")


def describe_guarantee(config: Config, clients: int) -> dict[str, Any]:
    """Returns the privacy guarantee of a private cell with secret keys, as the tables state it."""
    from privacy import accounting

    plan = assembly.build_plan(config, clients, ())
    return {
        "epsilon": accounting.epsilon(plan).value,
        "delta": plan.delta,
        "relation": plan.relation,
        "sampling_probability": config.cohort.sampling_probability,
        "population": plan.population,
        "rounds": plan.rounds,
        "noise_multiplier": plan.noise_multiplier,
    }


def unigram_loss(config: Config, prepared: data.Data) -> float:
    """Returns the loss of a unigram model of the training clients on what validation clients are evaluated on."""
    from experiments.baselines import Unigram

    rows = [prepared.whole(client)[:_VALIDATION_ROWS] for client in prepared.splits.validation]
    unigram = Unigram.fit([prepared.training(client) for client in prepared.splits.train], prepared.vocabulary.size)
    losses = sum(float(unigram.token_losses(each).sum()) for each in rows)
    return losses / sum(int(np.count_nonzero(each[:, 1:])) for each in rows)


def _begin(engine: Any, initial: dict[str, np.ndarray], server_rate: float) -> Any:
    """Returns the state before the first round; the server's learning rate is a part of it."""
    state = engine.process.initialize()
    weights = OrderedDict((name, initial[name]) for name in state["weights"])
    optimizer = OrderedDict(state["optimizer"], learning_rate=np.float32(server_rate))
    return OrderedDict(state, weights=weights, average=weights, optimizer=optimizer)


def _empty(cell: Cell, initial: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        **cell._asdict(),
        "rounds": 0,
        "diverged": False,
        "curve": {"rounds": [], "loss": [], "accuracy": []},
        "test": None,
        "parameters": sum(value.size for value in initial.values()),
        "clip": None,
        "within": [],
        "seconds": 0.0,
        "processor_seconds": 0.0,
    }


def _distance(initial: dict[str, np.ndarray], weights: Any) -> dict[str, float]:
    parts: dict[str, list[float]] = {"embedding": [0.0, 0.0], "others": [0.0, 0.0]}
    for name, start in initial.items():
        part = parts["embedding" if name == "embedding" else "others"]
        part[0] += float(np.sum(np.square(np.asarray(weights[name], np.float64) - start)))
        part[1] += float(np.sum(np.square(start.astype(np.float64))))
    return {name: round(math.sqrt(moved / norm), 4) for name, (moved, norm) in parts.items()}

"""Draws conclusions from the rows of `fedspeak reproduce si`: differences paired by seed, intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reproduce import seeds
from experiments.reproduce.si_arms import MOMENTUM, PUBLIC, SCALES_OF_WEIGHTS, Arm, Cell, Scale
from experiments.reproduce.si_choice import MissingError, Row, Rows, choose, final_cells, rank
from experiments.reproduce.si_models import PAIRS

NOT_MEASURED = "not measured yet"
PRESENT = "si-cifg"
"""Cell of the demo, which stays unless the other one is better."""
_NEAR = 0.2
"""A learning rate counts as one that trains if its loss is at most this many nats above that of the model's best."""


class Study(NamedTuple):
    """Holds what the conclusions are drawn from.

    Attributes:
      arms: the arms by name.
      scale: the study's scale.
      rounds: rounds of a whole training.
      rows: results so far.
      vocabulary_size: number of token ids. A loss that is larger than that of a uniform guess, or not finite, counts as
        that of a uniform guess.
    """

    arms: Mapping[str, Arm]
    scale: Scale
    rounds: int
    rows: Rows
    vocabulary_size: int

    def chosen(self, arm: str, model: str) -> Cell:
        """Returns the cell with the chosen rates; raises MissingError if the choice is not made yet."""
        return choose(self.arms[arm], model, self.arms, self.scale, self.rounds, self.rows)

    def passed_over(self, arm: str, model: str) -> list[Cell]:
        """Returns the cells that were better in the choice than the chosen one, but do not train with every seed."""
        order = rank(self.arms[arm], model, self.arms, self.scale, self.rounds, self.rows)
        return order[: order.index(self.chosen(arm, model))]

    def final(self, arm: str, model: str, scale: float = 1.0) -> list[Row]:
        """Returns the rows with the chosen rates, one for each seed; raises MissingError if one is missing."""
        chosen = self.chosen(arm, model)
        return [self.rows(chosen._replace(seed=seed, scale=scale), self.rounds) for seed in self.scale.seeds]

    def losses(self, arm: str, model: str, scale: float = 1.0) -> np.ndarray:
        """Returns the loss on the test clients of each seed, at most that of a uniform guess; float64 [seeds]."""
        return np.array([self.limit(row["test"] and row["test"]["loss"]) for row in self.final(arm, model, scale)])

    def limit(self, loss: float | None) -> float:
        """Returns a loss, at most that of a uniform guess, which also stands for None."""
        guess = math.log(self.vocabulary_size)
        return guess if loss is None else min(loss, guess)

    def by_rate(self, model: str) -> dict[float, np.ndarray]:
        """Returns the validation losses after half the rounds by learning rate of the clients, float64 [seeds]."""
        arm = self.arms[MOMENTUM]
        half = self.rounds // 2
        found: dict[float, list[float]] = {}
        for cell, _ in final_cells(arm, self.chosen(MOMENTUM, model), self.scale, self.rounds):
            if cell.scale == 1:
                row = self.rows(cell, half)
                loss = dict(zip(row["curve"]["rounds"], row["curve"]["loss"], strict=True)).get(half)
                found.setdefault(cell.client_rate, []).append(self.limit(loss))
        return {rate: np.array(found[rate]) for rate in sorted(found)}


class Comparison(NamedTuple):
    """Holds the comparison of a scale-invariant model with its standard form.

    Attributes:
      standard: mean of the standard model.
      invariant: mean of the scale-invariant model.
      difference: "mean" and "half" of invariant minus standard, paired by seed; below 0 the scale-invariant model is
        better.
    """

    standard: float
    invariant: float
    difference: Mapping[str, float]


def compare(standard: Sequence[float] | np.ndarray, invariant: Sequence[float] | np.ndarray) -> Comparison:
    """Compares values of the same seeds; at least two."""
    standard, invariant = np.asarray(standard, float), np.asarray(invariant, float)
    difference = seeds.interval(list(invariant - standard))
    return Comparison(float(standard.mean()), float(invariant.mean()), difference)


def verdict(comparison: Comparison | None) -> str:
    """Returns what an interval says about the claim that the scale-invariant model is better."""
    if comparison is None:
        return NOT_MEASURED
    mean, half = comparison.difference["mean"], comparison.difference["half"]
    if mean + half < 0:
        return "holds"
    return "the opposite holds" if mean - half > 0 else "undecided"


def rounds_to(row: Row, level: float) -> float | None:
    """Returns after how many rounds the validation loss first is at most `level`, between evaluations on a line.

    None if it never is. If the first evaluation is below the level already, its round is returned.
    """
    before: tuple[float, float] | None = None
    for done, loss in zip(row["curve"]["rounds"], row["curve"]["loss"], strict=True):
        if loss is not None and loss <= level:
            if before is None:
                return float(done)
            return before[0] + (done - before[0]) * (before[1] - level) / (before[1] - loss)
        before = None if loss is None else (float(done), loss)
    return None


def speed(study: Study, arm: str, standard: str) -> Comparison:
    """Compares the rounds after which each model has the loss at which the slower of the two ends, by seed."""
    rows = [study.final(arm, model) for model in (standard, PAIRS[standard])]
    found: list[list[float]] = [[], []]
    for pair in zip(*rows, strict=True):
        level = max(study.limit(row["curve"]["loss"][-1]) for row in pair)
        for values, row in zip(found, pair, strict=True):
            reached = rounds_to(row, level)
            values.append(study.rounds if reached is None else reached)
    return compare(*found)


def comparisons(study: Study) -> dict[tuple[str, str], Comparison | None]:
    """Returns every comparison by its name and the standard model; None where it is not measured yet.

    Those of an arm are differences of the final loss on test clients, in nats per token. "rounds" is that of `speed`,
    "rates" that of the mean validation loss over all learning rates of the clients after half the rounds, and "scale"
    that of how much the loss rises with other initial weights.
    """
    found: dict[tuple[str, str], Comparison | None] = {}
    for standard in PAIRS:
        for name, arm in study.arms.items():
            if {standard, PAIRS[standard]} <= set(arm.models):
                found[name, standard] = _if_measured(_final, study, name, standard)
        found["rounds", standard] = _if_measured(speed, study, MOMENTUM, standard)
        found["rates", standard] = _if_measured(_over_rates, study, standard)
        for scale in SCALES_OF_WEIGHTS:
            found[f"scale {scale:g}", standard] = _if_measured(_rise, study, standard, scale)
    return found


def _if_measured(make: Callable[..., Comparison], *arguments: Any) -> Comparison | None:
    try:
        return make(*arguments)
    except MissingError:
        return None


def _final(study: Study, arm: str, standard: str) -> Comparison:
    return compare(*(study.losses(arm, model) for model in (standard, PAIRS[standard])))


def _over_rates(study: Study, standard: str) -> Comparison:
    return compare(*(np.mean(list(study.by_rate(model).values()), axis=0) for model in (standard, PAIRS[standard])))


def _rise(study: Study, standard: str, scale: float) -> Comparison:
    rise = [
        study.losses(MOMENTUM, model, scale) - study.losses(MOMENTUM, model) for model in (standard, PAIRS[standard])
    ]
    return compare(*rise)


def near_rates(study: Study, model: str) -> float:
    """Returns how many of the clients' learning rates train about as well as the best one, the mean over the seeds."""
    losses = np.array(list(study.by_rate(model).values()))
    return float(np.mean(np.sum(losses <= losses.min(axis=0) + _NEAR, axis=0)))


def choose_cell(study: Study) -> str:
    """Returns the cell for private training from a public model: the better one, and `PRESENT` if neither is better."""
    comparison = comparisons(study).get((PUBLIC, "cifg"))
    if comparison is None:
        return NOT_MEASURED
    return {"holds": "si-cifg", "the opposite holds": "cifg"}.get(verdict(comparison), PRESENT)

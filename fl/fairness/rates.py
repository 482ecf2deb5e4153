"""Reads the sums of groups from a `MetricFrame` of fairlearn that holds a rate and the number of rows behind it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

Levels = tuple[Hashable, ...]


class Rates(NamedTuple):
    """Holds numbers of rows and of rows with the value 1, of every group in every stratum.

    Attributes:
      metric: name of the rate.
      control_levels: names of the control features.
      sensitive_levels: names of the sensitive features.
      groups: the levels of each group.
      totals: by stratum, float64 [2, groups]: number of rows, and number of those with the value 1.
    """

    metric: str
    control_levels: list[str]
    sensitive_levels: list[str]
    groups: list[Levels]
    totals: dict[Levels, Any]


def read_rates(metric_frame: Any, metric: str | None, count: str) -> Rates:
    """Returns the sums behind a rate.

    Args:
      metric_frame: frame of several metrics.
      metric: name of the rate. None: the only metric besides `count`.
      count: name of the metric that counts the rows which the rate is taken over.

    Raises:
      ValueError: the frame lacks a metric, or a rate times its count is not an integer.
    """
    by_group = metric_frame.by_group
    columns = [str(name) for name in getattr(by_group, "columns", [])]
    others = [name for name in columns if name != count]
    if count not in columns or (metric is None and len(others) != 1) or (metric is not None and metric not in others):
        raise ValueError(
            f"the MetricFrame has the metrics {', '.join(columns) or 'of one function'}: give it a mapping with a rate "
            f"and {count!r}: fairlearn.metrics.count, and name the rate"
        )
    metric = metric or others[0]
    counts = np.nan_to_num(np.asarray(by_group[count], np.float64))
    products = np.where(counts > 0, np.asarray(by_group[metric], np.float64), 0) * counts
    sums = np.round(products)
    if (np.abs(products - sums) > 1e-6 * np.maximum(counts, 1)).any():
        raise ValueError(
            f"metric {metric!r} times {count!r} is not an integer in every group: it is no rate over these rows; give "
            "FairnessFrame the labels and predictions"
        )
    control_levels = [str(name) for name in metric_frame.control_levels or []]
    keys = [key if isinstance(key, tuple) else (key,) for key in by_group.index]
    depth = len(control_levels)
    groups = list(dict.fromkeys(key[depth:] for key in keys))
    place = {group: number for number, group in enumerate(groups)}
    totals: dict[Levels, Any] = {}
    for key, rows, total in zip(keys, counts, sums, strict=True):
        stratum = totals.setdefault(key[:depth], np.zeros((2, len(groups))))
        stratum[:, place[key[depth:]]] = rows, total
    return Rates(metric, control_levels, [str(name) for name in metric_frame.sensitive_levels], groups, totals)

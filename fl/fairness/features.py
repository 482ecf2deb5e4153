"""Reads features in the forms that fairlearn's `MetricFrame` takes, and returns results in those that it gives."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import Any

import numpy as np


def named_columns(features: Any, prefix: str) -> dict[str, Any]:
    """Returns columns by name.

    Args:
      features: a data frame, a mapping from name to column, a named or unnamed series, an array [rows] or
        [rows, columns], or a list of one value for each row.
      prefix: beginning of the names of columns that have none; a number follows.

    Raises:
      ValueError: two columns have the same name.
    """
    if hasattr(features, "columns") and hasattr(features, "__getitem__"):
        names = list(features.columns)
        if len(set(map(str, names))) < len(names):
            raise ValueError(f"columns {', '.join(map(str, names))} have the same name twice: rename one")
        return {str(name): features[name] for name in names}
    if isinstance(features, Mapping):
        return {str(name): column for name, column in features.items()}
    if isinstance(name := getattr(features, "name", None), str):
        return {name: features}
    if hasattr(features, "__array__") and np.ndim(features) == 2:
        return {f"{prefix}_{i}": column for i, column in enumerate(np.asarray(features).T)}
    return {f"{prefix}_0": features}


def is_pandas(*values: Any) -> bool:
    """Returns whether one of the values is an object of pandas."""
    return any(type(value).__module__.partition(".")[0] == "pandas" for value in values)


Table = dict[str, dict[tuple[Hashable, ...], float]]
"""Values by metric and by the levels of the features."""


def shaped(table: Table, names: list[str], *, single: bool, pandas: bool) -> Any:
    """Returns values in the shape that fairlearn's `MetricFrame` gives them.

    Args:
      table: values by metric and levels; the levels are () if there are no features.
      names: names of the features, one for each level.
      single: whether the user gave one metric and not a mapping of metrics.
      pandas: whether to return a Series or DataFrame, otherwise mappings.
    """
    if not names:
        plain = {metric: values[()] for metric, values in table.items()}
        if single:
            return next(iter(plain.values()))
        return import_module("pandas").Series(plain) if pandas else plain
    if pandas:
        pd = import_module("pandas")
        keys = list(next(iter(table.values())))
        index = (
            pd.MultiIndex.from_tuples(keys, names=names)
            if len(names) > 1
            else pd.Index([key for (key,) in keys], name=names[0])
        )
        columns = {metric: list(values.values()) for metric, values in table.items()}
        if single:
            metric, values = next(iter(columns.items()))
            return pd.Series(values, index=index, name=metric)
        return pd.DataFrame(columns, index=index)
    mappings = {
        metric: {key[0] if len(names) == 1 else key: value for key, value in values.items()}
        for metric, values in table.items()
    }
    return next(iter(mappings.values())) if single else mappings

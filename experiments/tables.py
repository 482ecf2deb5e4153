"""Reads columns of a table from a CSV or Parquet file."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import extras


def read_columns(path: Path, columns: Sequence[str], texts: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Returns columns by name, each an array [rows] of integers, floats or Python objects.

    In a CSV file a column whose every value is a number becomes integers or floats. An empty value becomes NaN among
    numbers and None among texts.

    Args:
      path: a CSV file in UTF-8 with the names of its columns in the first row, or a file whose name ends in .parquet.
      columns: names of the columns to read.
      texts: those of them whose values are texts, also if they look like numbers: 007 stays 007 in a CSV file.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: the file is a Parquet file and the extra `parquet` is not installed.
      ValueError: the file has another format, lacks a column or has it twice, or has no row; one line.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a CSV or Parquet file")
    names = list(dict.fromkeys(columns))
    if path.suffix == ".parquet":
        table = _read_parquet(path, names)
        table |= {column: _as_texts(table[column]) for column in texts}
    else:
        table = _read_csv(path, names, texts)
    if not len(next(iter(table.values()))):
        raise ValueError(f"{path} has no row: give a table with at least two rows of each group")
    return table


def _require(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if header.count(column) != 1:
            problem = "no column" if column not in header else "more than one column"
            raise ValueError(f"{path} has {problem} {column!r}; it has {', '.join(map(repr, header))}")


def _read_csv(path: Path, columns: list[str], texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise ValueError(f"{path} is empty: give a table with the names of its columns in the first row")
            _require(path, header, columns)
            places = [header.index(column) for column in columns]
            rows = []
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    raise ValueError(
                        f"{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}: repair it"
                    )
                rows.append([row[place] for place in places])
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: write it as CSV in UTF-8, or as .parquet") from None
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV ({error}): repair the line") from None
    values = zip(*rows, strict=True) if rows else [()] * len(columns)
    return {
        column: _as_texts(cells) if column in texts else _parse(cells)
        for column, cells in zip(columns, values, strict=True)
    }


def _as_texts(values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    """Returns the values of a column as texts; an empty value and one that is missing are None."""
    cells = values.tolist() if isinstance(values, np.ndarray) else values
    missing = (cell is None or cell == "" or cell != cell for cell in cells)  # NaN differs from itself
    return np.array([None if gone else str(cell) for cell, gone in zip(cells, missing, strict=True)], object)


def _parse(texts: Sequence[str]) -> NDArray[Any]:
    """Returns the values of a column: numbers if all are numbers, otherwise texts; an empty value is NaN or None."""
    array = np.array(texts, object)
    with contextlib.suppress(ValueError, OverflowError):
        return array.astype(np.int64)
    empty = array == ""
    with contextlib.suppress(ValueError):
        return np.where(empty, "nan", array).astype(np.float64)
    array[empty] = None
    return array


def _read_parquet(path: Path, columns: list[str]) -> dict[str, NDArray[Any]]:
    extras.require("parquet")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require(path, file.schema_arrow.names, columns)
            table = file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file, or a damaged one ({reason}): write it again") from None
    arrays = {}
    for column in columns:
        values = table.column(column).to_numpy()
        # Arrow writes integers with missing values as floats; a group must not become 1.0.
        if table.column(column).null_count and pa.types.is_integer(table.schema.field(column).type):
            values = np.array(table.column(column).to_pylist(), object)
        arrays[column] = values
    return arrays

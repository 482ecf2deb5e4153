"""Converts values to what JSON can hold: JSON has no NumPy numbers, no NaN and no infinities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(values: Any) -> Any:
    """Returns `values` with Python's own numbers in place of NumPy's, and with None (`null`) for NaN and infinities.

    Mappings and sequences are converted at every depth. Python's own `json` would write NaN and Infinity, which are
    not JSON and which other readers refuse.
    """
    if isinstance(values, Mapping):
        return {name: plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    value = values.item() if hasattr(values, "item") else values
    return None if isinstance(value, float) and not math.isfinite(value) else value

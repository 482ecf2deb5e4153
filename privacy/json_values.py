"""Values that JSON can hold: it has no NumPy numbers, and neither NaN nor infinities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(values: Any) -> Any:
    """Returns nested mappings and sequences with NumPy scalars as Python's, and None (`null`) for what is not finite.

    Python's own `json` writes NaN and Infinity, which are not JSON and which other readers refuse.
    """
    if isinstance(values, Mapping):
        return {name: plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    value = values.item() if hasattr(values, "item") else values
    return None if isinstance(value, float) and not math.isfinite(value) else value

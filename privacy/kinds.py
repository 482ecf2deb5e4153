"""Reads objects that were written as a dict with the name of their class under `kind`."""

from __future__ import annotations

from typing import Any


def from_dict(name: str, data: Any, kinds: dict[Any, Any]) -> Any:
    """Returns the object that `data` describes.

    Args:
      name: what the object is, for messages.
      data: the object's fields, and its kind under `kind`.
      kinds: the class of each kind.

    Raises:
      ValueError: `data` is not a dict, or the kind or a field is unknown or out of range.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name} is {data!r}: give a dict with kind and fields")
    fields = dict(data)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name} kind {kind!r} is unknown: use one of {', '.join(kinds)}")
    try:
        return kinds[kind](**fields)
    except TypeError:
        raise ValueError(
            f"{name} fields {sorted(fields)} do not fit kind {kind!r}: give those of {kinds[kind].__name__}"
        ) from None

"""Finds client ids that differ only in white space, invisible characters, Unicode form or a final `.0`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from typing import Literal

MergeIds = Literal["normalize"]
"""Ways of joining clients in a token store: `normalize` joins those whose ids have the same `normalized` form."""

_INVISIBLE = frozenset({"Cc", "Cf"})
_INTEGRAL = re.compile(r"(-?[0-9]+)\.0+")


def normalized(client_id: str) -> str:
    """Returns the spelling that near-equal ids have in common.

    It has no control or zero-width characters and no white space at either end; each run of white space is one space;
    the Unicode form is NFKC; an integer such as `7.0` is `7`. Letter case is kept. Normalizing a normalized id returns
    it unchanged.
    """
    if not (client_id.isascii() and client_id.isprintable()):
        visible = (c for c in client_id if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
        client_id = unicodedata.normalize("NFKC", "".join(visible))
    spaced = " ".join(client_id.split())
    integer = _INTEGRAL.fullmatch(spaced)
    return integer[1] if integer else spaced


def is_blank(client_id: str) -> bool:
    """Returns whether an id is empty or consists of white space, control and zero-width characters only."""
    return not normalized(client_id)


def near_equal(client_ids: Iterable[str], known: Container[str]) -> list[tuple[str, ...]]:
    """Finds groups of different ids that have the same normalized form.

    Args:
      client_ids: ids, all different.
      known: the same ids, as a set or dict in which a look-up is fast.

    Returns:
      The groups, each of at least two ids. Only ids that are not in normalized form take memory meanwhile.
    """
    groups: dict[str, list[str]] = {}
    for client_id in client_ids:
        form = normalized(client_id)
        if form != client_id:
            groups.setdefault(form, [form] if form in known else []).append(client_id)
    return [tuple(group) for group in groups.values() if len(group) > 1]

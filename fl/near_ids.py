"""Finds client ids that differ only in white space, invisible characters, Unicode form or a final `.0`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from typing import Literal

MergeIds = Literal["normalize"]
"""How a token store joins clients: `normalize` joins those whose ids have one `normalized` form."""

_INVISIBLE = frozenset({"Cc", "Cf"})
_INTEGRAL = re.compile(r"(-?[0-9]+)\.0+")


def normalized(client_id: str) -> str:
    """Returns the spelling that near-equal ids have in common.

    Control and zero-width characters are left out, the Unicode form is NFKC, runs of white space are one space, none
    stands at either end, and `7.0` is `7`. Letter case stays. Normalizing twice changes nothing more.
    """
    if not (client_id.isascii() and client_id.isprintable()):
        shown = (c for c in client_id if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
        client_id = unicodedata.normalize("NFKC", "".join(shown))
    spaced = " ".join(client_id.split())
    integer = _INTEGRAL.fullmatch(spaced)
    return integer[1] if integer else spaced


def is_blank(client_id: str) -> bool:
    """Returns whether an id shows nothing: it is empty, or white space, control and zero-width characters alone."""
    return not normalized(client_id)


def near_equal(client_ids: Iterable[str], known: Container[str]) -> list[tuple[str, ...]]:
    """Finds the ids that differ and have one normalized form.

    Args:
      client_ids: ids, all different.
      known: contains exactly the same ids, and answers fast (a set or a dict).

    Returns:
      The groups of near-equal ids, each of at least two. Memory is taken by ids that are not in normalized form alone.
    """
    groups: dict[str, list[str]] = {}
    for client_id in client_ids:
        form = normalized(client_id)
        if form != client_id:
            groups.setdefault(form, [form] if form in known else []).append(client_id)
    return [tuple(group) for group in groups.values() if len(group) > 1]

"""Finds client ids that differ only in white space, invisible characters, Unicode form or a final `.0`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from typing import Literal

MergeIds = Literal["normalize"]
"""Ways of joining clients in a token store: `normalize` joins those whose ids have the same `normalized` form."""

_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf"})
# Unicode's Default_Ignorable_Code_Points (DerivedCoreProperties.txt), many of which are marks or letters by category
# or not assigned yet, and the blank Braille pattern.
_INVISIBLE_RANGES = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_INVISIBLE = frozenset(chr(code) for first, last in _INVISIBLE_RANGES for code in range(first, last + 1))
_INTEGRAL = re.compile(r"(-?[0-9]+)\.0+")


def normalized(client_id: str) -> str:
    """Returns the spelling that near-equal ids have in common.

    The result has no invisible characters (control, zero-width, variation selectors, fillers and others that Unicode
    ignores by default, the blank Braille pattern) and no white space at either end. Each run of white space becomes one
    space, and the Unicode form is NFKC. An integer such as `7.0` becomes `7`, and `-0` becomes `0`. Normalizing a
    normalized id returns it unchanged.

    Ids that differ in letter case stay different. So do other spellings of an integer: `07`, `+7`, `7.` and digits of
    other scripts such as `٧` do not become `7`.
    """
    if not (client_id.isascii() and client_id.isprintable()):
        client_id = unicodedata.normalize("NFKC", "".join(c for c in client_id if c.isspace() or not _is_invisible(c)))
    spaced = " ".join(client_id.split())
    match = _INTEGRAL.fullmatch(spaced)
    form = match[1] if match else spaced
    return "0" if form == "-0" else form


def is_blank(client_id: str) -> bool:
    """Returns whether an id is empty or consists of white space and invisible characters only (see `normalized`)."""
    return not normalized(client_id)


def _is_invisible(character: str) -> bool:
    return character in _INVISIBLE or unicodedata.category(character) in _INVISIBLE_CATEGORIES


def near_equal(client_ids: Iterable[str], known: Container[str]) -> list[tuple[str, ...]]:
    """Finds groups of different ids that have the same normalized form.

    Args:
      client_ids: ids, all different.
      known: the same ids, as a set or dict in which a look-up is fast.

    Returns:
      The groups, each of at least two ids. The search stores only ids that are not in normalized form.
    """
    groups: dict[str, list[str]] = {}
    for client_id in client_ids:
        form = normalized(client_id)
        if form != client_id:
            groups.setdefault(form, [form] if form in known else []).append(client_id)
    return [tuple(group) for group in groups.values() if len(group) > 1]

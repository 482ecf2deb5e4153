"""Provides what a configuration is built of: descriptions with ranges, checks of keys, and values written as TOML."""

from collections.abc import Sequence

import msgspec
import tomli_w
from msgspec import Meta

# Training computes in float32, where smaller numbers are 0 and larger ones infinite.
SMALLEST, LARGEST = 1e-37, 1e38
# TOML's integers have 64 bits.
INTEGERS = (-(2**63), 2**63 - 1)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Defines a section of the file, in which keys that are unknown or have the wrong type are refused."""


def positive(description: str) -> Meta:
    """Describes a number above 0 that float32 can hold."""
    return Meta(ge=SMALLEST, le=LARGEST, description=description)


def non_negative(description: str) -> Meta:
    """Describes a number of at least 0 that float32 can hold."""
    return Meta(ge=0, le=LARGEST, description=description)


def share(description: str) -> Meta:
    """Describes a number in [0, 1)."""
    return Meta(ge=0, lt=1, description=description)


def open_share(description: str) -> Meta:
    """Describes a number in (0, 1)."""
    return Meta(gt=0, lt=1, description=description)


def at_least(least: int, description: str, most: int = INTEGERS[1]) -> Meta:
    """Describes an integer in [least, most]."""
    return Meta(ge=least, le=most, description=description)


def text(description: str) -> Meta:
    """Describes a value whose type alone says what is allowed."""
    return Meta(description=description)


def require_only_for(key: str, value: object, kind: str, kinds: Sequence[str]) -> None:
    """Raises ValueError if a key is set that has no effect with the chosen kind."""
    if value is not None and kind not in kinds:
        only = ", ".join(map(as_toml, kinds))
        raise ValueError(
            f"{key} = {as_toml(value)} has no effect with {as_toml(kind)}, only with {only}: remove the key"
        )


def as_toml(value: object) -> str:
    """Returns a value as it stands in TOML, in one line: `true`, `"tiny"`, `2020-01-01`, `[1, { a = 2 }]`."""
    match value:
        case list() | tuple():
            return f"[{', '.join(map(as_toml, value))}]"
        case dict():
            return "{ " + ", ".join(f"{as_toml_key(key)} = {as_toml(each)}" for key, each in value.items()) + " }"
    return tomli_w.dumps({"_": value}).removeprefix("_ = ").rstrip("\n")


def as_toml_key(key: str) -> str:
    """Returns a key as it stands in TOML: in quotes only where it needs them."""
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")

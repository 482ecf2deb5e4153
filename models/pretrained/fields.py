"""Reads the settings of a checkpoint with their types checked."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

Item = TypeVar("Item", int, float, str)
_LARGEST = 2**31 - 1
_NAMES: dict[type, str] = {int: "integers", float: "numbers", str: "texts"}


class Fields:
    """Gives the fields of a file by name, and raises ValueError if one is missing or of another type.

    A field whose value is None is missing. Every message is one line that names the file and the field.

    Args:
      content: the values by name.
      where: the file.
      prefix: what every name begins with in `content`.
    """

    def __init__(self, content: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.content, self.where, self.prefix = content, where, prefix

    def get(self, name: str) -> Any:
        """Returns a value of any type; None if it is missing."""
        return self.content.get(self.prefix + name)

    def has(self, name: str) -> bool:
        """Returns whether the field is there."""
        return self.get(name) is not None

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """Returns an integer from `least` to `most`; a missing one is `default`, or an error if that is None."""
        value = self._single(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, value, f"an integer from {least} to {most}")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number; a missing one is `default`, or an error if that is None."""
        value = self._single(name, default)
        # An integer may be too large for a float, so it is compared before it is converted.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            self.refuse(name, value, "a finite number")
        try:
            return float(value)
        except OverflowError:
            self.refuse(name, value, "a finite number")

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Returns true or false; a missing one is `default`, or an error if that is None."""
        value = self._single(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Returns a text; a missing one is `default`, or an error if that is None."""
        value = self._single(name, default)
        if not isinstance(value, str):
            self.refuse(name, value, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Returns a text, or None if it is missing."""
        return self.text(name) if self.has(name) else None

    def items(self, name: str, kind: type[Item]) -> list[Item]:
        """Returns a list of which every item is of type `kind`."""
        value = self._require(name, None)
        if not isinstance(value, list):
            self.refuse(name, value, "a list")
        for item in value:
            if not isinstance(item, kind):
                self.refuse(name, f"with {item!r}", f"a list of {_NAMES[kind]}")
        return value

    def mapping(self, name: str, default: Mapping[str, Any] | None = None) -> "Fields":
        """Returns the fields of an object inside; those of a missing one are `default`, or an error if that is None."""
        value = self._require(name, default)
        if not isinstance(value, Mapping):
            self.refuse(name, value, "an object")
        return Fields({f"{name}.{key}": item for key, item in value.items()}, self.where, f"{name}.")

    def _require(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None and default is None:
            raise ValueError(
                f"{self.where}: the field {self.prefix}{name} is missing: the file is damaged; download it again"
            )
        return default if value is None else value

    def _single(self, name: str, default: Any) -> Any:
        value = self._require(name, default)
        if isinstance(value, list):
            raise ValueError(
                f"{self.where}: the field {self.prefix}{name} is a list, such as one value per block; only a single "
                "value can be imported"
            )
        return value

    def refuse(self, name: str, value: Any, kind: str) -> NoReturn:
        """Raises ValueError: the field's value is not of this kind."""
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
        raise ValueError(f"{self.where}: the field {self.prefix}{name} must be {kind}, not {shown[:60]}")

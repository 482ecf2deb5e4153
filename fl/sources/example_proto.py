"""Reads the text in a serialised `tf.train.Example` without TensorFlow.

The module decodes as much of the protocol-buffer wire format (https://protobuf.dev/programming-guides/encoding/) as
that needs. Written as {field number: value}, an Example is `{1: Features}`; Features has one `{1: {1: name, 2:
Feature}}` per feature; a Feature of bytes is `{1: BytesList}`; a BytesList has one `{1: bytes}` per value.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def bytes_feature(example: bytes, name: str) -> list[bytes]:
    """Returns the values of the bytes feature `name`, in order.

    Args:
      example: a serialised `tf.train.Example`.
      name: name of the feature.

    Raises:
      ValueError: `example` is not a serialised Example, or has no such feature, or the feature holds numbers.
    """
    features: dict[bytes, bytes] = {}
    for part in _messages(example):
        for entry in _messages(part):
            # As the wire format prescribes: of several equal keys, or equal fields of one entry, the last counts.
            fields = {
                1: b"",
                2: b"",
                **{number: value for number, value in _fields(entry) if value is not None},
            }
            features[fields[1]] = fields[2]
    feature = features.get(name.encode())
    if feature is None:
        names = ", ".join(repr(key.decode(errors="replace")) for key in sorted(features)) or "none"
        raise ValueError(f"no feature {name!r}; the example has {names}")
    if any(number != 1 for number, _ in _fields(feature)):
        raise ValueError(f"feature {name!r} holds numbers, not text")
    return [value for values in _messages(feature) for value in _messages(values)]


def _messages(message: bytes) -> Iterator[bytes]:
    """Yields the values of field 1."""
    return (value for number, value in _fields(message) if number == 1 and value is not None)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yields (number, value) of the fields of a message, in order; the value of a numeric field is None."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        value = None
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            size, position = _varint(message, position)
            value = message[position : position + size]
            position += size
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"not a tf.train.Example: wire type {kind}")
        if position > len(message) or not tag >> 3:
            raise ValueError("not a tf.train.Example: it is cut short or damaged")
        yield tag >> 3, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("not a tf.train.Example: it is cut short or damaged")

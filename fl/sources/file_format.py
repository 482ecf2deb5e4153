"""Recognises, by their first bytes, files in a format that a text source cannot read, and says how to convert them."""

from __future__ import annotations

from pathlib import Path

_HEAD = 1 << 16
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"]\0\0": ("lzma", "unlzma"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_SOURCES = {b"SQLite format 3\0": ("an SQLite", "sqlite"), b"PAR1": ("a Parquet", "parquet")}
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def head(path: Path) -> bytes:
    """Returns the first 64 KiB of a file."""
    with open(path, "rb") as file:
        return file.read(_HEAD)


def why_compressed(start: bytes) -> str | None:
    """Returns one line with the fix if a file that begins with the bytes `start` is compressed, and None otherwise."""
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        name, command = "bzip2", "bunzip2"
    else:
        name, command = next((fix for magic, fix in _COMPRESSED.items() if start.startswith(magic)), ("", ""))
    return f"the file is compressed ({name}): decompress it first, for instance with {command}" if name else None


def why_no_text(start: bytes) -> str | None:
    """Returns one line with the fix if a file that begins with the bytes `start` is not lines of UTF-8 text.

    None means that no such reason was found. The rest of the file may still hold bytes that are not UTF-8.
    """
    if reason := why_compressed(start):
        return reason
    for magic, (name, source) in _SOURCES.items():
        if start.startswith(magic):
            return f'this is {name} file: read it with data.source = "{source}" (fl.sources.{source})'
    if encoding := _wide_encoding(start):
        return f"the text is {encoding[:6]}: convert it to UTF-8, for instance with iconv -f {encoding} -t UTF-8"
    if b"\r" in start and b"\n" not in start:
        return "lines end with a bare carriage return: convert them, for instance with tr '\\r' '\\n'"
    return None


def _wide_encoding(start: bytes) -> str | None:
    """Returns iconv's name of the encoding if the text is in UTF-16 or UTF-32; None for other text."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    sample = start[: 4096 - 4096 % 4]
    for order, newline in (("LE", b"\n\0\0\0"), ("BE", b"\0\0\0\n")):
        high, middle = (sample[3::4], sample[2::4]) if order == "LE" else (sample[::4], sample[1::4])
        # A character of UTF-32 is at most 0x10FFFF, and most text has none above 0xFFFF.
        if len(sample) >= 4 and not any(high) and middle.count(0) > 0.9 * len(middle) and _holds(sample, newline):
            return f"UTF-32{order}"
    for order, newline in (("LE", b"\n\0"), ("BE", b"\0\n")):
        high, low = (sample[1::2], sample[::2]) if order == "LE" else (sample[::2], sample[1::2])
        zeros, zeros_of_low = high.count(0) / max(len(high), 1), low.count(0) / max(len(low), 1)
        # The text is mostly ASCII, whose high bytes are zero, or it is in a script such as Chinese, in which only
        # newlines, commas and other ASCII characters have a high byte of zero.
        if zeros > 0.9 and zeros_of_low < 0.1 or zeros > 0.01 and not zeros_of_low and _holds(sample, newline):
            return f"UTF-16{order}"
    return None


def _holds(sample: bytes, character: bytes) -> bool:
    """Returns whether `character` stands in the sample at a multiple of its length."""
    position = sample.find(character)
    while position % len(character) and position >= 0:
        position = sample.find(character, position + 1)
    return position >= 0

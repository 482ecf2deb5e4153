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
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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

    None means that nothing speaks against it; the rest of the file may still hold bytes that are not UTF-8.
    """
    if reason := why_compressed(start):
        return reason
    for magic, (name, source) in _SOURCES.items():
        if start.startswith(magic):
            return f'this is {name} file: read it with data.source = "{source}" (fl.sources.{source})'
    if start.startswith(_UTF16_MARKS) or _looks_like_utf16(start):
        return "the text is UTF-16: convert it to UTF-8, for instance with iconv -f UTF-16 -t UTF-8"
    if b"\r" in start and b"\n" not in start:
        return "lines end with a bare carriage return: convert them, for instance with tr '\\r' '\\n'"
    return None


def _looks_like_utf16(start: bytes) -> bool:
    """Returns whether nearly every other byte is zero and few of the rest are, as in mostly ASCII text in UTF-16."""
    sample = start[:4096]
    zeros = [part.count(0) / max(len(part), 1) for part in (sample[::2], sample[1::2])]
    return max(zeros) > 0.9 and min(zeros) < 0.1

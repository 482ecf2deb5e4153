"""The file that goes to a device: a TFLite flatbuffer with a zip of the vocabulary and the facts about it
appended.

TFLite runtimes read the front and ignore what follows; `zipfile` reads the back (`unzip -l model.tflite`
lists it). Standard library only.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.vocabulary import Vocabulary

PRECISIONS = ("float32", "float16", "int8")
_FORMAT = "fedspeak model 2"
_FACTS = "model.json"
_VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Facts:
    """What is known of the flatbuffer without running it.

    Attributes:
      precision: one of `PRECISIONS`.
      config: the language model's `config()`.
      max_prompt: tokens that the signatures `prefill` and `generate` read at most, the begin token included.
      max_new_tokens: tokens that the signature `generate` writes at most.
      state_shapes: shapes of `state_0`, `state_1`, ... of the signatures `prefill` and `decode`.
      flatbuffer_bytes: length of the flatbuffer, before the appended zip.
      flatbuffer_sha256: its checksum.
    """

    precision: str
    config: dict[str, Any]
    max_prompt: int
    max_new_tokens: int
    state_shapes: list[list[int]]
    flatbuffer_bytes: int
    flatbuffer_sha256: str


def checksum(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def write(path: str | os.PathLike[str], flatbuffer: bytes, vocabulary: Vocabulary, facts: Facts) -> None:
    """Writes the file: all of it or nothing.

    Raises:
      OSError: `path` cannot be written.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        with os.fdopen(handle, "w+b") as file:
            file.write(flatbuffer)
            with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
                _add(
                    archive,
                    _FACTS,
                    json.dumps({"format": _FORMAT, **asdict(facts)}, sort_keys=True, indent=1),
                )
                _add(archive, _VOCABULARY, vocabulary.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise


def read(path: str | os.PathLike[str]) -> tuple[Facts, Vocabulary]:
    """Facts and vocabulary of a file that `write` wrote, whose flatbuffer is whole.

    Raises:
      OSError: `path` cannot be read.
      ValueError: it is another kind of file, or damaged.
    """
    with open(path, "rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ValueError(f"{path}: not a TFLite file")
        try:
            with zipfile.ZipFile(file) as archive:
                described = json.loads(archive.read(_FACTS))
                vocabulary = Vocabulary.from_json(archive.read(_VOCABULARY).decode())
            form = described.pop("format")
            if form == "fedspeak model 1":  # version 0.1
                described["max_new_tokens"] = described.pop("max_tokens")
            elif form != _FORMAT:
                raise ValueError("unknown format")
            facts = Facts(**described)
            lengths = facts.max_prompt, facts.max_new_tokens, facts.flatbuffer_bytes
            if not all(type(length) is int and length > 0 for length in lengths):
                raise ValueError("no lengths")
            if facts.config["vocabulary_size"] != vocabulary.size:
                raise ValueError("another vocabulary")
        except Exception:  # zipfile, zlib and json each have their own for what is damaged
            raise ValueError(f"{path}: cut short, or not from `fedspeak export` (no vocabulary found in it)") from None
        file.seek(0)
        if checksum(file.read(facts.flatbuffer_bytes)) != facts.flatbuffer_sha256:
            raise ValueError(f"{path}: damaged, the model's checksum differs; export or copy it again")
    return facts, vocabulary


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # A fixed time, so that equal models give equal files.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, text)

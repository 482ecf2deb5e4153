"""Reads and writes the file that goes to a device: a TFLite flatbuffer, then a zip with vocabulary and facts.

TFLite runtimes read the flatbuffer and ignore what follows it. Python's `zipfile` finds the zip at the end of the file,
and `unzip -l model.tflite` lists it. The module needs only the standard library and NumPy.
"""

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from models import vocabularies
from models.atomic_file import replace_file
from models.vocabularies import AnyVocabulary

PRECISIONS = ("float32", "float16", "int8")
_FORMAT = "fedspeak model 2"
_FACTS = "model.json"
_VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Facts:
    """Holds facts about a flatbuffer that can be read without running it.

    Attributes:
      precision: weight precision, one of `PRECISIONS`.
      config: the language model's `config()`.
      max_prompt: maximum number of tokens that the signatures `prefill` and `generate` read, begin token included.
      max_new_tokens: maximum number of tokens that the signature `generate` draws.
      state_shapes: shapes of `state_0`, `state_1`, ... of the signatures `prefill` and `decode`, all float32, and int32
        for the length `[1]` that ends the state of a transformer.
      flatbuffer_bytes: size of the flatbuffer in bytes, without the zip after it.
      flatbuffer_sha256: SHA-256 of the flatbuffer, in hex.
      decodings: names of the decodings that the file has signatures for.
      draft_length: number of tokens that the drafter proposes per block; 0 without a drafter.
      draft_room: maximum number of tokens that a block of any of the decodings drafts.
      automatic: whether draft lengths are chosen at run time.
      num_drafts: number of drafts of decoding "spectr".
      tree: number of children by depth of the drafted tree of decoding "tree".
      best_of: number of texts that the signature `generate_best_of_n` draws at once; 1 without it.
    """

    precision: str
    config: dict[str, Any]
    max_prompt: int
    max_new_tokens: int
    state_shapes: list[list[int]]
    flatbuffer_bytes: int
    flatbuffer_sha256: str
    decodings: list[str] = field(default_factory=lambda: ["autoregressive"])
    draft_length: int = 0
    draft_room: int = 0
    automatic: bool = False
    num_drafts: int = 0
    tree: list[int] = field(default_factory=list)
    best_of: int = 1

    @property
    def context(self) -> int | None:
        """Returns the maximum number of tokens of a prompt and its continuation together; None: no maximum."""
        room = self.config.get("cache_length")
        return None if room is None else room - self.draft_room


def checksum(content: bytes) -> str:
    """Returns the SHA-256 of `content`, in hex."""
    return hashlib.sha256(content).hexdigest()


def write(path: str | os.PathLike[str], flatbuffer: bytes, vocabulary: AnyVocabulary, facts: Facts) -> None:
    """Writes a flatbuffer with its vocabulary and facts to `path`.

    If writing fails, an existing file at `path` is left unchanged.

    Raises:
      OSError: `path` cannot be written.
    """
    with replace_file(path) as file:
        file.write(flatbuffer)
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, _FACTS, json.dumps({"format": _FORMAT, **asdict(facts)}, sort_keys=True, indent=1))
            _add(archive, _VOCABULARY, vocabulary.to_json())


def read(path: str | os.PathLike[str]) -> tuple[Facts, AnyVocabulary]:
    """Reads the facts and the vocabulary from a file that `write` wrote, and verifies the flatbuffer's checksum.

    Raises:
      OSError: `path` cannot be read.
      ValueError: `path` is another kind of file, or damaged.
    """
    with open(path, "rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ValueError(f"{path}: not a TFLite file")
        try:
            with zipfile.ZipFile(file) as archive:
                entries = json.loads(archive.read(_FACTS))
                vocabulary = vocabularies.from_json(archive.read(_VOCABULARY).decode())
            file_format = entries.pop("format")
            if file_format == "fedspeak model 1":  # fedspeak 0.1 wrote it
                entries["max_new_tokens"] = entries.pop("max_tokens")
            elif file_format != _FORMAT:
                raise ValueError("unknown format")
            facts = Facts(**entries)
            lengths = facts.max_prompt, facts.max_new_tokens, facts.flatbuffer_bytes
            if not all(type(length) is int and length > 0 for length in lengths):
                raise ValueError("a length is not a positive integer")
            if facts.config["vocabulary_size"] != vocabulary.size:
                raise ValueError("the vocabulary's size is not the model's")
        except ModuleNotFoundError:  # of a package that an imported model's vocabulary needs
            raise
        except Exception:  # zipfile, zlib and json raise errors of many kinds on damaged files
            raise ValueError(
                f"{path}: cut short, or not from `fedspeak export`, or from a version of fedspeak that this one cannot "
                "read (its vocabulary or model.json is missing or invalid); export or copy it again, or update fedspeak"
            ) from None
        file.seek(0)
        if _checksum_of(file, facts.flatbuffer_bytes) != facts.flatbuffer_sha256:
            raise ValueError(f"{path}: damaged (the model's checksum differs); export or copy it again")
    return facts, vocabulary


def _checksum_of(file: BinaryIO, size: int) -> str:
    """Returns the SHA-256 of the next `size` bytes of a file, in hex, without holding them in memory."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # The timestamp is fixed, so that equal models give byte-identical files.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, text)

"""Saves and loads a run's checkpoints, each one file that is written atomically and checked when it is read.

A file is a NumPy `.npz` archive of the process state plus one JSON document, followed by the archive's SHA-256.
"""

import hashlib
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from privacy import files

_DOCUMENT = "document.json"
_DIGEST_BYTES = 32


class Checkpoint(NamedTuple):
    """Holds the state of a run after `round` rounds, that is, before the round with this number."""

    round: int  # rounds count from 0
    state: Any  # nested mappings of NumPy arrays, as a TFF process returns them
    document: dict[str, Any]  # everything else that a resumed run needs, as JSON


def path_of(folder: Path, round_number: int) -> Path:
    """Returns the path of the checkpoint that is saved before the round with this number."""
    return folder / f"round-{round_number:06d}.ckpt"


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint and deletes all but the `keep` newest; after a crash the file is complete or absent."""
    files.make_private_folder(folder)
    path = path_of(folder, checkpoint.round)
    _write(path, dict(_flatten(checkpoint.state)), checkpoint.document)
    for old in list_files(folder)[:-keep]:
        try:
            old.unlink()
        except OSError as error:
            raise files.not_written(old, error) from None
    return path


def list_files(folder: Path) -> list[Path]:
    """Returns the checkpoint files, oldest first; files with other names are ignored."""
    named = [path for path in folder.glob("round-*.ckpt") if path.stem.removeprefix("round-").isdecimal()]
    return sorted(named, key=_round_of)


def load(path: Path, template: Any) -> Checkpoint:
    """Reads a checkpoint whose state has the structure, shapes and dtypes of `template`.

    Raises:
      ValueError: the file is truncated or damaged, or it belongs to another model or optimizer.
    """
    content = _read_content(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        document = json.loads(archive.read(_DOCUMENT))
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        state = _restore(template, {name: arrays[name] for name in arrays.files if name != _DOCUMENT}, path)
    return Checkpoint(_round_of(path), state, document)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _read_content(path: Path) -> bytes:
    """Returns the archive in a file after checking it against the digest that follows it."""
    raw = path.read_bytes()
    content, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(
            f"checkpoint {path} is truncated or damaged: delete it to resume from the one before (rounds are replayed "
            "with the same cohorts and noise)"
        )
    return content


def latest_document(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Returns (round, document) of the newest checkpoint, or None if there is none."""
    paths = list_files(folder)
    if not paths:
        return None
    with zipfile.ZipFile(io.BytesIO(_read_content(paths[-1]))) as archive:
        return _round_of(paths[-1]), json.loads(archive.read(_DOCUMENT))


def replace_document(folder: Path, document: dict[str, Any]) -> None:
    """Replaces the document of the newest checkpoint; its state stays the same."""
    path = list_files(folder)[-1]
    with np.load(io.BytesIO(_read_content(path)), allow_pickle=False) as arrays:
        _write(path, {name: arrays[name] for name in arrays.files if name != _DOCUMENT}, document)


def load_latest(folder: Path, template: Any) -> Checkpoint | None:
    """Loads the newest checkpoint, or returns None if there is none; raises ValueError as `load` does."""
    paths = list_files(folder)
    return load(paths[-1], template) if paths else None


def _write(path: Path, arrays: Mapping[str, np.ndarray], document: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_DOCUMENT), json.dumps(document, sort_keys=True))
    content = buffer.getvalue()
    files.write_private(path, content + hashlib.sha256(content).digest())


def _flatten(state: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Returns the arrays in nested mappings, each named by its path, as in "weights/kernel"."""
    if not isinstance(state, Mapping):
        return [(prefix, np.asarray(state))]
    return [pair for name, value in state.items() for pair in _flatten(value, f"{prefix}/{name}" if prefix else name)]


def _restore(template: Any, arrays: Mapping[str, np.ndarray], path: Path, prefix: str = "") -> Any:
    """Returns the arrays, which are named by paths such as "weights/kernel", nested in mappings as `template` is."""
    if isinstance(template, Mapping):
        names = [(name, f"{prefix}/{name}" if prefix else name) for name in template]
        return OrderedDict((name, _restore(template[name], arrays, path, full)) for name, full in names)
    expected, array = np.asarray(template), arrays.get(prefix)
    if array is None or (array.shape, array.dtype) != (expected.shape, expected.dtype):
        actual = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(
            f"checkpoint {path} does not fit this run: {prefix} is {actual}, expected {expected.dtype} "
            f"{expected.shape}; resume with the model and optimizer that the run began with"
        )
    return array

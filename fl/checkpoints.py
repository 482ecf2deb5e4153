"""Checkpoints of a run: one file a checkpoint, written atomically, checked when read.

A file is a NumPy `.npz` archive of the process state plus one JSON document, followed by the SHA-256 of all before it.
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
    """The state of a run before round `round`."""

    round: int
    state: Any  # nested mappings of NumPy arrays, as a TFF process returns them
    document: dict[str, Any]  # JSON: what else must survive


def path_of(folder: Path, round_number: int) -> Path:
    """File of the checkpoint before that round."""
    return folder / f"round-{round_number:06d}.ckpt"


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint and deletes all but the `keep` newest. The file is whole or absent, whatever happens."""
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
    """Checkpoint files, oldest first; files of other names are not looked at."""
    named = [path for path in folder.glob("round-*.ckpt") if path.stem.removeprefix("round-").isdecimal()]
    return sorted(named, key=_round_of)


def load(path: Path, template: Any) -> Checkpoint:
    """Reads a checkpoint whose state has the structure, shapes and dtypes of `template`.

    Raises:
      ValueError: the file is truncated, damaged, or of another model or optimizer.
    """
    content = _content(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        document = json.loads(archive.read(_DOCUMENT))
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        state = _restore(template, {name: arrays[name] for name in arrays.files if name != _DOCUMENT}, path)
    return Checkpoint(_round_of(path), state, document)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    content, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(
            f"checkpoint {path} is truncated or damaged: delete it to resume from the one before (rounds are replayed "
            "with the same cohorts and noise)"
        )
    return content


def latest_document(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(round, document) of the newest checkpoint, or None if there is none."""
    files = list_files(folder)
    if not files:
        return None
    with zipfile.ZipFile(io.BytesIO(_content(files[-1]))) as archive:
        return _round_of(files[-1]), json.loads(archive.read(_DOCUMENT))


def replace_document(folder: Path, document: dict[str, Any]) -> None:
    """Gives the newest checkpoint another document; its state stays."""
    path = list_files(folder)[-1]
    with np.load(io.BytesIO(_content(path)), allow_pickle=False) as arrays:
        _write(path, {name: arrays[name] for name in arrays.files if name != _DOCUMENT}, document)


def load_latest(folder: Path, template: Any) -> Checkpoint | None:
    """The newest checkpoint, or None if there is none. Raises ValueError as `load` does."""
    files = list_files(folder)
    return load(files[-1], template) if files else None


def _write(path: Path, arrays: Mapping[str, np.ndarray], document: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_DOCUMENT), json.dumps(document, sort_keys=True))
    content = buffer.getvalue()
    files.write_private(path, content + hashlib.sha256(content).digest())


def _flatten(state: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    if not isinstance(state, Mapping):
        return [(prefix, np.asarray(state))]
    return [pair for name, value in state.items() for pair in _flatten(value, f"{prefix}/{name}" if prefix else name)]


def _restore(template: Any, arrays: Mapping[str, np.ndarray], path: Path, prefix: str = "") -> Any:
    if isinstance(template, Mapping):
        names = [(name, f"{prefix}/{name}" if prefix else name) for name in template]
        return OrderedDict((name, _restore(template[name], arrays, path, full)) for name, full in names)
    wanted, found = np.asarray(template), arrays.get(prefix)
    if found is None or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        got = "absent" if found is None else f"{found.dtype} {found.shape}"
        raise ValueError(
            f"checkpoint {path} does not fit this run: {prefix} is {got}, wanted {wanted.dtype} {wanted.shape}"
        )
    return found

"""Writes an imported model as a folder that `evaluate`, `export` and `train` read like that of a run."""

import hashlib
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.provenance import versions
from experiments.runs import RunFolder, save_weights, write_json
from privacy.files import fix_of

if TYPE_CHECKING:  # so that TensorFlow loads only after the arguments have been checked
    from models.pretrained.checkpoint import Checkpoint


def digest(path: Path) -> str:
    """Returns the SHA-256 in hex of a file, or that of the digests of a folder's weights, settings and tokenizer."""
    if path.is_file():
        return _digest_of_file(path).hexdigest()
    total = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "config.json", path / "tokenizer.json"]):
        total.update(_digest_of_file(file).digest())
    return total.hexdigest()


def _digest_of_file(path: Path) -> "hashlib._Hash":
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def write(checkpoint: "Checkpoint", source: Path, folder: Path, command: str) -> None:
    """Writes an imported model into a new folder, completely or not at all.

    Args:
      checkpoint: the model.
      source: the file or folder that it was read from.
      folder: the folder to make.
      command: the command line, which is recorded.

    Raises:
      FileExistsError: the folder exists.
      OSError: it cannot be written.
    """
    require_new(folder)
    sha256 = digest(source)
    draft = None
    try:
        prefix = f"{_draft_prefix(folder)}{os.getpid()}."
        draft = Path(tempfile.mkdtemp(prefix=prefix, suffix=".draft", dir=folder.parent))
        run = RunFolder(draft)
        save_weights(run.weights, checkpoint.weights)
        write_json(run.model, checkpoint.model.config())
        checkpoint.vocabulary.save(run.vocabulary)
        facts = {
            "command": command,
            "imported": {"description": checkpoint.description, "file": source.name, "sha256": sha256},
            "versions": versions(),
            "vocabulary": checkpoint.vocabulary.digest,
        }
        write_json(run.facts, facts)
        os.rename(draft, folder)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            error.errno, f"{folder} could not be written ({reason}): {fix_of(error)}, then import again"
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def remove_stale_drafts(folder: Path) -> None:
    """Deletes what imports into `folder` have left beside it whose processes were killed on this machine."""
    name = re.compile(re.escape(_draft_prefix(folder)) + r"([1-9][0-9]{0,9})\.\w+\.draft")
    for path in folder.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _draft_prefix(folder: Path) -> str:
    # With the machine's name, because another one may write into the same shared folder.
    return f".{folder.name}.{platform.node()[:40]}."


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user, or cannot be asked for
        return True
    return True


def require_new(folder: Path) -> None:
    """Raises FileExistsError if the folder exists, or FileNotFoundError if its parent does not."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another --output, or delete it")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent} is not a folder: create it first")

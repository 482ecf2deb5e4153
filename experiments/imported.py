"""Writes an imported model as a folder that `evaluate`, `export` and `train` read like that of a run."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from experiments.provenance import versions
from experiments.runs import RunFolder, save_weights, write_json
from models.pretrained.checkpoint import Checkpoint


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the weights and the tokenizer in a folder, in hex."""
    files = (
        [path]
        if path.is_file()
        else sorted([*path.glob("*.safetensors"), path / "config.json", path / "tokenizer.json"])
    )
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def write(checkpoint: Checkpoint, source: Path, folder: Path, command: str) -> None:
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
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
    try:
        run = RunFolder(draft)
        save_weights(run.weights, checkpoint.weights)
        write_json(run.model, checkpoint.model.config())
        checkpoint.vocabulary.save(run.vocabulary)
        facts = {
            "command": command,
            "imported": {"description": checkpoint.description, "file": source.name, "sha256": digest(source)},
            "versions": versions(),
            "vocabulary": checkpoint.vocabulary.digest,
        }
        write_json(run.facts, facts)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def require_new(folder: Path) -> None:
    """Raises FileExistsError if the folder exists, or FileNotFoundError if its parent does not."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another --output, or delete it")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent} is not a folder: create it first")

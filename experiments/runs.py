"""The folder of a run: what lies where, and how a trained model is read back."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import config_file
from experiments.config import Config
from experiments.display import no_notices
from fl.rounds import RoundLog
from privacy.files import close_all_to_others, make_private_folder, write_private
from privacy.json_values import plain

_WANTED = "train one with fedspeak train, or give the folder of a run"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder.

    All files are the operator's and have mode 0600, except those made for publication: `report-release.*`,
    `model*.tflite`, `samples.txt`, and `vocabulary.json`, which comes from public text and is in every exported model.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def config_digest(self) -> Path:
        return self.path / "config.sha256"

    @property
    def vocabulary(self) -> Path:
        return self.path / "vocabulary.json"

    @property
    def keys(self) -> Path:
        return self.path / "keys.json"

    @property
    def public_weights(self) -> Path:
        return self.path / "public.npz"

    @property
    def weights(self) -> Path:
        return self.path / "weights.npz"

    @property
    def model(self) -> Path:
        return self.path / "model.json"

    @property
    def ledger(self) -> Path:
        return RoundLog(self.path).ledger

    @property
    def metrics(self) -> Path:
        return RoundLog(self.path).metrics

    @property
    def evaluation(self) -> Path:
        """Losses on the test clients."""
        return self.path / "evaluation.json"

    @property
    def table(self) -> Path:
        return self.path / "evaluation.md"

    @property
    def facts(self) -> Path:
        """How the run began: the command, the versions, what is in the data."""
        return self.path / "facts.json"

    @property
    def tensorboard(self) -> Path:
        """Events for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def engine(self) -> Path:
        """How many clients are trained at once, measured when the run began: another number rounds otherwise."""
        return self.path / "engine.json"

    def close_to_others(self) -> None:
        """Takes the rights of other users from the operator's files: an earlier version left them open."""
        log = RoundLog(self.path)
        own = [self.config, self.config_digest, self.facts, self.evaluation, self.table, self.tensorboard]
        own += [self.path / f"report.{suffix}" for suffix in ("html", "md", "json")]
        own += [self.path / f"curve.{suffix}" for suffix in ("png", "svg")]
        for pattern in ("metrics-until-round-*.jsonl", ".*.tmp", ".*.draft"):  # drafts that a kill left
            own += self.path.glob(pattern)
        for path in (*own, *(path for path in self._made if path != self.keys), log.checkpoints):
            close_all_to_others(path)

    def create(self, config: Config) -> bool:
        """Writes the resolved config into the folder; True if the folder was made for it.

        Raises:
          FileExistsError: there is something of a run already.
        """
        if any(path.exists() for path in (*self._set_up, *self._made)):
            raise FileExistsError(
                f"{self.path} holds a run: resume it with --resume {self.path}, or choose another folder"
            )
        is_new = not self.path.exists()
        make_private_folder(self.path)
        text = config_file.dump(config).encode()
        try:
            write_private(self.config_digest, hashlib.sha256(text).hexdigest().encode())
            write_private(self.config, text)
        except OSError:
            # A digest without its config could neither be resumed nor begun again.
            with contextlib.suppress(OSError):
                self.discard(is_new)
            raise
        return is_new

    def discard(self, with_folder: bool) -> None:
        """Takes back what `create` and the setting up wrote, unless something has been made with it since."""
        if any(path.exists() for path in self._made):
            return
        for path in self._set_up:
            path.unlink(missing_ok=True)
        if with_folder and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def _set_up(self) -> tuple[Path, ...]:
        return self.config, self.config_digest, self.vocabulary, self.facts

    @property
    def _made(self) -> tuple[Path, ...]:
        log = RoundLog(self.path)
        return (
            self.public_weights,
            self.engine,
            self.keys,
            log.ledger,
            log.metrics,
            log.checkpoints,
            self.weights,
            self.model,
        )

    def check_data(self, store_digest: str) -> None:
        """Raises ValueError if the clients' tokens or the vocabulary are not those that the run began with."""
        if self.facts.exists() and read_json(self.facts, "store")["store"] != store_digest:
            raise ValueError(
                f"the data is not what {self.path} began with (clients, texts or vocabulary.json differ): bring it "
                "back, or start a new run"
            )

    def read_config(self) -> Config:
        """The resolved config the run was started with.

        Raises:
          FileNotFoundError: there is no run here.
          ValueError: the config was changed since: its rounds are under the old one.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} holds no run (no config.toml): {_WANTED}")
        text = self.config.read_bytes()
        if (
            not self.config_digest.exists()
            or hashlib.sha256(text).hexdigest() != self.config_digest.read_text().strip()
        ):
            raise ValueError(
                f"{self.config} was changed after the run began: its rounds were made under another config; undo the "
                "change, or start a new run with it"
            )
        return config_file.parse(text.decode(), str(self.config))

    def require_trained(self) -> None:
        """Raises FileNotFoundError unless the run is finished."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} does not exist: {_WANTED}")
        if not self.weights.exists():
            raise FileNotFoundError(
                f"{self.path} holds no trained model: finish it with fedspeak train --resume {self.path}"
            )


def write_json(path: Path, content: Any) -> None:
    """Writes JSON for people and programs, atomically; what is not finite is null."""
    write_private(path, json.dumps(plain(content), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """An object of JSON with these keys. Raises ValueError, in one line that names the file, if it is none."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(key in found for key in keys):
            raise ValueError(f"no object with {', '.join(keys) or 'names'}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or make it anew") from None
    return found


def save_weights(path: Path, weights: dict[str, Any]) -> None:
    """Named arrays as one `.npz`, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in weights.items()})
    write_private(path, buffer.getvalue())


def load_weights(path: Path, model: Any = None) -> dict[str, np.ndarray]:
    """Inverse of `save_weights`; with a model, its weights. Raises FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {_WANTED}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in sorted(arrays.files)}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"{path} is damaged ({error}): delete it and resume the run") from None
    if model is not None and {name: array.shape for name, array in weights.items()} != model.shapes():
        raise ValueError(f"{path} does not hold the weights of this run's model: delete it and resume the run")
    return weights


def load_trained(folder: Path | str) -> tuple[Any, dict[str, np.ndarray], Any]:
    """(model, weights, vocabulary) of a finished run. Raises FileNotFoundError if it is not there or not finished,
    ValueError if a file of it is damaged or another run's.
    """
    from models.presets import from_config
    from models.vocabulary import Vocabulary

    run = RunFolder(Path(folder))
    run.require_trained()
    with no_notices():  # loads TensorFlow
        model = from_config(read_json(run.model, "architecture"))
    vocabulary = Vocabulary.load(run.vocabulary)
    if run.facts.exists() and read_json(run.facts).get("vocabulary", vocabulary.digest) != vocabulary.digest:
        raise ValueError(f"{run.vocabulary} is not the one that the run was trained with: restore it")
    return model, load_weights(run.weights, model), vocabulary

"""Defines the files in a run's folder, and writes and reads them."""

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

_HINT = "train one with fedspeak train, or give the folder of a run"


@dataclass(frozen=True)
class RunFolder:
    """Gives the paths of the files in a run's folder.

    The files are for the operator only and have mode 0600, except those for publication: `report-release.*`,
    `model*.tflite`, `samples.txt`, and `vocabulary.json`, which is learned from public text and is part of every
    exported model.

    Attributes:
      path: path of the folder, which need not exist.
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
        """Returns the file with the results on the test clients, which `fedspeak evaluate` writes."""
        return self.path / "evaluation.json"

    @property
    def table(self) -> Path:
        return self.path / "evaluation.md"

    @property
    def heads(self) -> Path:
        """Returns the file with the results of each prediction head on text that was not trained on."""
        return self.path / "heads.json"

    @property
    def facts(self) -> Path:
        """Returns the file with the command, versions, a summary of the data, and the kernels that computed the rounds.

        `kernels` lists the kernels in the order of their use; it is absent before the first round is recorded.
        """
        return self.path / "facts.json"

    @property
    def checkpoints(self) -> Path:
        """Returns the folder of the checkpoints from which training is resumed."""
        return RoundLog(self.path).checkpoints

    @property
    def text_digests(self) -> Path:
        """Returns the file with digests of the public text that the model was trained on (`fedspeak pretrain`)."""
        return self.path / "text-digests.npz"

    @property
    def tensorboard(self) -> Path:
        """Returns the folder of the events for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def engine(self) -> Path:
        """Returns the file with the number of clients that are trained at once, measured when the run began.

        A resumed run must keep it: another number rounds the sums differently.
        """
        return self.path / "engine.json"

    def close_to_others(self) -> None:
        """Closes the operator's files to other accounts; earlier versions of fedspeak left them readable."""
        log = RoundLog(self.path)
        own = [self.config, self.config_digest, self.facts, self.evaluation, self.heads, self.table, self.tensorboard]
        own += [self.path / f"report.{suffix}" for suffix in ("html", "md", "json")]
        own += [self.path / f"curve.{suffix}" for suffix in ("png", "svg")]
        for pattern in ("metrics-until-round-*.jsonl", ".*.tmp", ".*.draft"):  # a killed write leaves a .tmp or .draft
            own += self.path.glob(pattern)
        for path in (*own, *(path for path in self._progress_files if path != self.keys), log.checkpoints):
            close_all_to_others(path)

    def create(self, config: Config) -> bool:
        """Writes the resolved config into the folder, which is made if it does not exist.

        Args:
          config: configuration of the new run.

        Returns:
          Whether the folder is new.

        Raises:
          FileExistsError: the folder holds files of a run already.
        """
        if any(path.exists() for path in (*self._setup_files, *self._progress_files)):
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
            # With only one of the two files, the folder could neither be resumed nor used for a new run.
            with contextlib.suppress(OSError):
                self.discard(is_new)
            raise
        return is_new

    def discard(self, with_folder: bool) -> None:
        """Deletes the files that were written before training; does nothing if training has written a file.

        Args:
          with_folder: whether to delete the folder too, if it is empty then.
        """
        if any(path.exists() for path in self._progress_files):
            return
        for path in self._setup_files:
            path.unlink(missing_ok=True)
        if with_folder and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def _setup_files(self) -> tuple[Path, ...]:
        return self.config, self.config_digest, self.vocabulary, self.facts, self.text_digests

    @property
    def _progress_files(self) -> tuple[Path, ...]:
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
        """Checks that the clients' tokens and the vocabulary are those that the run began with.

        Args:
          store_digest: digest of the token store.

        Raises:
          ValueError: they are not.
        """
        if self.facts.exists() and read_json(self.facts, "store")["store"] != store_digest:
            raise ValueError(
                f"the data differs from what {self.path} began with (clients, texts or vocabulary.json): restore it, "
                "or start a new run"
            )

    def check_kernels(self, kernels: str, unit: str = "rounds") -> str | None:
        """Returns a warning if `kernels` are not those that computed the newest rounds of the run.

        Args:
          kernels: description of the kernels that will compute the next rounds.
          unit: what the warning calls the rounds.
        """
        before = read_json(self.facts).get("kernels", [])
        if not before or before[-1] == kernels:
            return None
        has_workers = "worker" in before[-1] + kernels
        fix = f"resume on the machines of the earlier {unit}" if has_workers else "set TF_ENABLE_ONEDNN_OPTS as before"
        return (
            f"warning: earlier {unit} were computed with {before[-1]}, the next ones will be with {kernels}: the "
            f"result {'may' if has_workers else 'will'} not be bit-equal to that of an uninterrupted run (to avoid "
            f"this, {fix})"
        )

    def require_federated(self) -> None:
        """Raises ValueError if the folder holds a model that was trained or imported without clients."""
        facts = read_json(self.facts) if self.facts.exists() else {}
        if not {"public", "imported"} & set(facts):
            return
        if "imported" in facts or self.weights.exists():
            raise ValueError(
                f"{self.path} holds a model without clients: evaluate it with fedspeak evaluate {self.path} --text FILE"
            )
        raise ValueError(f"{self.path} holds no federated run: resume it with fedspeak pretrain --resume {self.path}")

    def read_config(self) -> Config:
        """Reads the resolved config that the run was started with.

        Raises:
          FileNotFoundError: the folder holds no run.
          ValueError: the config was changed after the run began.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} holds no run (no config.toml): {_HINT}")
        text = self.config.read_bytes()
        if (
            not self.config_digest.exists()
            or hashlib.sha256(text).hexdigest() != self.config_digest.read_text().strip()
        ):
            raise ValueError(
                f"{self.config} was changed after the run began, and its rounds were trained with the old config: undo "
                "the change, or start a new run with it"
            )
        return config_file.parse(text.decode(), str(self.config))

    def require_trained(self) -> None:
        """Checks that the run is finished; raises FileNotFoundError otherwise."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} does not exist: {_HINT}")
        if not self.weights.exists():
            command = "pretrain" if self.text_digests.exists() else "train"
            raise FileNotFoundError(
                f"{self.path} holds no trained model: finish it with fedspeak {command} --resume {self.path}"
            )


def write_json(path: Path, content: Any) -> None:
    """Writes a value as indented JSON, atomically and with mode 0600; numbers that are not finite become null."""
    write_private(path, json.dumps(plain(content), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: file to read.
      keys: names that the object must have.

    Raises:
      ValueError: the file holds no such object; one line that names the file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not all(key in content for key in keys):
            raise ValueError(f"not a JSON object with {', '.join(keys)}" if keys else "not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or write it again") from None
    return content


def save_weights(path: Path, weights: dict[str, Any]) -> None:
    """Writes weights by name as one `.npz` file, atomically and with mode 0600."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in weights.items()})
    write_private(path, buffer.getvalue())


def load_weights(path: Path, model: Any = None) -> dict[str, np.ndarray]:
    """Reads weights that `save_weights` wrote.

    Args:
      path: the `.npz` file.
      model: model whose shapes the weights must have; None: any shapes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or its weights are not the model's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {_HINT}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in sorted(arrays.files)}
    except Exception as error:  # zipfile, zlib and NumPy each raise exceptions of their own
        raise ValueError(f"{path} is damaged ({error}): delete it and resume the run") from None
    if model is not None and {name: array.shape for name, array in weights.items()} != model.shapes():
        raise ValueError(f"{path} does not hold the weights of this run's model: delete it and resume the run")
    return weights


def load_trained(folder: Path | str) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Loads the trained model of a finished run.

    Args:
      folder: folder of the run.

    Returns:
      The model, its weights by name, and its vocabulary.

    Raises:
      FileNotFoundError: there is no run, or it is not finished.
      ValueError: a file of the run is damaged, or is another run's.
    """
    from models import vocabularies
    from models.presets import from_config

    run = RunFolder(Path(folder))
    run.require_trained()
    config = read_json(run.model, "architecture")
    with no_notices():  # loads TensorFlow
        try:
            model = from_config(config)
        except ValueError as error:
            raise ValueError(f"{run.model}: {error}; restore the file") from None
    vocabulary = vocabularies.load(run.vocabulary)
    if run.facts.exists() and read_json(run.facts).get("vocabulary", vocabulary.digest) != vocabulary.digest:
        raise ValueError(f"{run.vocabulary} is not the vocabulary that the run was trained with: restore it")
    return model, load_weights(run.weights, model), vocabulary

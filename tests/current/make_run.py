"""In the locked environment: trains a small run, and leaves with it what TensorFlow 2.14 makes of its model.

    python tests/current/make_run.py FOLDER

`tests/current/test_border.py` takes it up in the other environment. FOLDER is made anew.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CONFIG = """
[data]
source = "jsonl"
path = "{folder}/users.jsonl"
public = ["{folder}/public.txt"]
min_tokens = 10
validation = 0.2
test = 0.2

[vocabulary]
size = 300

[model]
embedding = 16
units = 24

[pretraining]
epochs = 4
learning_rate = 0.01

[clients]
learning_rate = 0.5
batch_size = 4
sequence_length = 8

[cohort]
sampling_probability = 0.4

[privacy]
noise_multiplier = 1.0
clip_norm = 0.5

[run]
rounds = 2
clients_at_once = 2
"""


def _texts(folder: Path) -> None:
    words = "the king shall speak and all men hear him well when night is dark".split()
    generator = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(generator.choice(words, 8))

    rows = [json.dumps({"user": f"u{i}", "text": sentence()}) for i in range(40) for _ in range(6)]
    (folder / "users.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "public.txt").write_text("\n".join(sentence() for _ in range(200)) + "\n")
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))


def _made_here(folder: Path) -> None:
    """Logits, a file for the device and a Keras file, by this environment."""
    from experiments.runs import load_trained
    from models.export import export
    from models.keras_model import to_keras
    from models.recurrent_lm import RecurrentLanguageModel

    model, weights, vocabulary = load_trained(folder / "run")
    tokens = np.random.default_rng(1).integers(3, model.vocabulary_size, (4, 12)).astype(np.int32)
    logits, _ = model.extend(weights, tokens, model.initial_state(4))
    np.savez(folder / "logits.npz", tokens=tokens, logits=logits)
    normalised = RecurrentLanguageModel("cifg", 420, 23, 37, layer_norm=True, output_bias=True)
    drawn = {name: np.asarray(value) for name, value in normalised.init(0).items()}
    tokens = np.random.default_rng(2).integers(3, 420, (64, 60)).astype(np.int32)
    logits, states = normalised.extend(drawn, tokens, normalised.initial_state(64))
    np.savez(folder / "normalised.npz", tokens=tokens, logits=logits, outputs=states.output, cells=states.cell)
    np.savez(folder / "normalised_weights.npz", **drawn)
    export(model, weights, vocabulary, folder / "locked.tflite", "float32")
    to_keras(model, weights, length=12).save(folder / "locked.keras")


def main(folder: Path) -> None:
    """Raises SystemExit as the command line does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _texts(folder)
    from experiments.cli import main as fedspeak

    try:
        fedspeak(["train", str(folder / "config.toml"), "--output", str(folder / "run")])
    except SystemExit as end:
        if end.code:
            raise
    _made_here(folder)
    (folder / "complete").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

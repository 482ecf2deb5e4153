"""A run that was trained in the locked environment, taken up in this one, without TFF.

`make test-current` makes the run by `tests/current/make_run.py` and runs this in the environment of current TensorFlow;
in the locked one it holds as well.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from experiments.runs import load_trained
from models import device
from models.cifg import CIFGState
from models.keras_model import from_keras, load_into_keras, load_keras, to_keras
from models.recurrent_lm import RecurrentLanguageModel
from tests.models.exported import logit_rounding, operations

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / ".cache" / "run"

# Raised by Keras 3 itself, where it saves a variable under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


OWN_NOTES = re.compile(r"converting the model .* …|comparing .* with the trained model …|\d+ tokens?.*1 thread\)")
"""What export and generate print on standard error; all else there is a notice of TensorFlow or LiteRT."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A copy of the run's folder, with what TensorFlow 2.14 made of it beside it."""
    if not (MADE / "complete").exists():
        pytest.fail(f"{MADE} is not there: make test-current makes it")
    folder = tmp_path_factory.mktemp("border") / "made"
    shutil.copytree(MADE, folder)
    return folder / "run"


def fedspeak(*arguments: str) -> str:
    """Standard output, as a user has it: without what the tests set for TensorFlow."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_"))}
    command = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    notices = [line for line in done.stderr.splitlines() if not OWN_NOTES.fullmatch(line)]
    assert (done.returncode, notices) == (0, [])
    return done.stdout


@pytest.fixture(scope="module")
def exported(run) -> Path:
    fedspeak("export", str(run))
    return run / "model.tflite"


def test_the_same_logits(run):
    model, weights, _ = load_trained(run)
    with np.load(run.parent / "logits.npz") as saved:
        logits, _ = model.extend(weights, saved["tokens"], model.initial_state(len(saved["tokens"])))
        within = logit_rounding(model, weights, saved["tokens"].shape[1])
        np.testing.assert_allclose(logits, saved["logits"], atol=within, rtol=0)


def test_every_step_of_a_normalised_cifg_over_long_texts(run):
    """Every step begins at the other environment's state. Over many steps the recurrence multiplies what one step
    rounds (sigmoid and tanh differ in the last bit), without a bound that holds on every processor."""
    model = RecurrentLanguageModel("cifg", 420, 23, 37, layer_norm=True, output_bias=True)
    with np.load(run.parent / "normalised_weights.npz") as weights, np.load(run.parent / "normalised.npz") as saved:
        drawn, steps = dict(weights), dict(saved)

    def after_each_step(values: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Logits, outputs and cells, one row for each of the 60 tokens of 64 texts."""
        before = CIFGState(steps["outputs"][:, :-1].reshape(-1, 23), steps["cells"][:, :-1].reshape(-1, 37))
        logits, states = model.extend(values, steps["tokens"].reshape(-1, 1), before)
        return [logits[:, 0], states.output[:, 1], states.cell[:, 1]]

    expected = steps["logits"], steps["outputs"][:, 1:], steps["cells"][:, 1:]
    upwards = {name: np.nextafter(value, np.float32(np.inf)) for name, value in drawn.items()}
    for here, moved, there in zip(after_each_step(drawn), after_each_step(upwards), expected, strict=True):
        there = there.reshape(here.shape)
        # Each operation rounds as much as a weight's last bit.
        within = operations(model) * np.abs(moved - here).max()
        assert np.abs(here - there).max() < within < 0.01 * np.ptp(there)


def test_both_converters_files_give_the_same_tokens(run, exported):
    """50 seeds, in this environment's LiteRT runtime."""
    mine, locked = device.load(exported), device.load(run.parent / "locked.tflite")
    texts = [[loaded.text("the king", seed=seed, max_new_tokens=24) for seed in range(50)] for loaded in (mine, locked)]
    # The converters order operations differently, and of 1,200 tokens each is another by rounding with probability 1e-4
    # (see docs/export.md): more than three of the texts, with probability 1e-5.
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 47
    assert len(set(texts[0])) > 25


def test_text_comes_from_the_exported_file(exported):
    assert fedspeak("generate", str(exported), "--prompt", "the king", "--seed", "3").startswith("the king")


def test_the_run_is_evaluated_and_reported_here(run):
    found = fedspeak("evaluate", str(run))
    assert "after federated training" in found
    fedspeak("report", str(run))
    assert json.loads((run / "report.json").read_text())["status"] == "private"


def test_a_keras_file_of_the_locked_environment(run):
    """Refused in one line that says how to go on, which works; in the locked environment itself it is loaded."""
    model, weights, _ = load_trained(run)
    if keras.__version__.startswith("3"):
        with pytest.raises(ValueError, match="was saved by Keras 2.* load_into_keras") as error:
            load_keras(run.parent / "locked.keras")
        assert "\n" not in str(error.value)
        loaded = to_keras(model, length=12)
        load_into_keras(loaded, weights)
    else:
        loaded = load_keras(run.parent / "locked.keras")
    for name, value in from_keras(loaded).items():
        np.testing.assert_array_equal(value, weights[name])
    tokens = np.random.default_rng(1).integers(3, model.vocabulary_size, (2, 12)).astype(np.int32)
    within = logit_rounding(model, weights, 12)
    np.testing.assert_allclose(loaded(tokens), to_keras(model, weights, length=12)(tokens), atol=within)


def test_nothing_here_needed_tff():
    """In the environment of `make test-current` it is not even there."""
    if keras.__version__.startswith("3"):
        assert importlib.util.find_spec("tensorflow_federated") is None

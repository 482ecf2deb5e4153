"""A small run on made-up text, trained once without interruption, which all tests of the commands share."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from tests.experiments.processes import call

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
embedding = 8
units = 12

[pretraining]
epochs = 1

[clients]
learning_rate = 0.5
batch_size = 4
sequence_length = 8
max_sequences = 8

[cohort]
sampling_probability = 0.4

[privacy]
noise_multiplier = 1.0
clip_norm = 0.5
clip_quantile = 0.5
clip_count_stddev = 5.0

[run]
rounds = 5
evaluate_every = 2
fixed_key = 1
clients_at_once = 2
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    words = "the king shall speak and all men hear him well when night is dark".split()
    generator = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(generator.choice(words, 8))

    rows = [json.dumps({"user": f"u{i}", "text": sentence()}) for i in range(40) for _ in range(6)]
    rows.insert(7, '{"user": "u1"}')
    (folder / "users.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "public.txt").write_text("\n".join(sentence() for _ in range(100)) + "\n")
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture(scope="session")
def whole(folder) -> tuple[Path, str, str]:
    """Trains a run without interruption; returns its folder, standard output and standard error."""
    run = folder / "whole"
    code, out, err = call("train", str(folder / "config.toml"), "--output", str(run), folder=folder)
    assert code == 0, err
    return run, out, err


@pytest.fixture
def refuse(capsys, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        message = err.strip().splitlines()[-1]
        assert message.startswith("fedspeak: error: ") and "Traceback" not in err, err
        return message

    return check

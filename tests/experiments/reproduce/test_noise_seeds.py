"""A study of repetitions stays that of the run it was begun for; its rounds are those of `fedspeak train`."""

import msgspec
import pytest

from experiments.config import Config
from experiments.reproduce import noise_seeds
from experiments.runs import RunFolder


@pytest.fixture
def source(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(Config())
    run.vocabulary.write_text("{}")
    run.public_weights.write_bytes(b"weights")
    return run


def test_a_repetition_begins_as_the_run_did_and_goes_on(source, tmp_path):
    repeated = RunFolder(tmp_path / "seed-1")
    for _ in range(2):
        noise_seeds._begin(repeated, source, Config())
        assert repeated.public_weights.read_bytes() == b"weights" and repeated.vocabulary.read_text() == "{}"
    # Killed between the files: what is missing comes from the run, and is not made anew.
    repeated.public_weights.unlink()
    noise_seeds._begin(repeated, source, Config())
    assert repeated.public_weights.read_bytes() == b"weights"


@pytest.mark.parametrize("change", ["config", "vocabulary", "weights"])
def test_a_repetition_of_another_run_is_not_shown(source, tmp_path, change):
    repeated, config = RunFolder(tmp_path / "seed-1"), Config()
    noise_seeds._begin(repeated, source, config)
    if change == "config":
        config = msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, rounds=99))
    elif change == "vocabulary":
        source.vocabulary.write_text("[]")
    else:
        source.public_weights.write_bytes(b"others")
    with pytest.raises(ValueError, match="seed-1 is a repetition of another run than .* is now: delete"):
        noise_seeds._begin(repeated, source, config)


def test_an_unfinished_run_is_not_repeated(source):
    with pytest.raises(FileNotFoundError, match="holds no trained model: finish it"):
        source.require_trained()

"""The repetitions of a run: their folders are prepared from the run, and those of another run are refused."""

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


def test_prepare_repetition_copies_the_run_and_restores_missing_files(source, tmp_path):
    repeated = RunFolder(tmp_path / "seed-1")
    for _ in range(2):
        noise_seeds._prepare_repetition(repeated, source, Config())
        assert repeated.public_weights.read_bytes() == b"weights" and repeated.vocabulary.read_text() == "{}"
    # A process killed between two files leaves the second one missing: it is copied from the run again.
    repeated.public_weights.unlink()
    noise_seeds._prepare_repetition(repeated, source, Config())
    assert repeated.public_weights.read_bytes() == b"weights"


@pytest.mark.parametrize("change", ["config", "vocabulary", "weights"])
def test_prepare_repetition_refuses_repetition_of_another_run(source, tmp_path, change):
    repeated, config = RunFolder(tmp_path / "seed-1"), Config()
    noise_seeds._prepare_repetition(repeated, source, config)
    if change == "config":
        config = msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, rounds=99))
    elif change == "vocabulary":
        source.vocabulary.write_text("[]")
    else:
        source.public_weights.write_bytes(b"others")
    with pytest.raises(ValueError, match="seed-1 is a repetition of another run, or .* has changed since: delete"):
        noise_seeds._prepare_repetition(repeated, source, config)


def test_require_trained_refuses_unfinished_run(source):
    with pytest.raises(FileNotFoundError, match="holds no trained model: finish it"):
        source.require_trained()

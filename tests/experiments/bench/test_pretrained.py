"""`bench pretrained` compares ids, logits and greedy tokens of a small checkpoint with those that the peer wrote."""

import json

import numpy as np
import pytest

from experiments.bench import pretrained
from experiments.cli import main
from models.pretrained import checkpoint
from tests.models.pretrained.checkpoints import write_gguf
from tests.models.pretrained.test_checkpoint import oracle_logits

COMMAND = "bench", "pretrained"  # "bench pretrained"


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Returns a function that compares a small checkpoint with the oracle's logits plus an error."""
    weights = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr(pretrained, "_TOKENS", 6)
    monkeypatch.setattr(pretrained, "_GREEDY", 4)
    texts = ["the and in the", "an other thing"]
    words = checkpoint.load(tmp_path / "small.gguf").vocabulary
    order = words.rows(words.size)

    def compare(error=0.0):
        arrays = {}
        for number, text in enumerate(texts):
            ids = order[words.encode(text)]
            arrays[f"ids_{number}"] = ids
            arrays[f"logits_{number}"] = oracle_logits(weights, ids[:6]) + error
            drawn = list(ids[:6])
            for _ in range(4):
                drawn.append(int(np.argmax(oracle_logits(weights, drawn)[-1])))
            arrays[f"greedy_{number}"] = np.array(drawn[6:])
        np.savez(tmp_path / "logits.npz", **arrays)
        return pretrained._compare(tmp_path / "small.gguf", texts, tmp_path / "logits.npz")

    return compare


def test_comparison_finds_equal_ids_logits_and_greedy_tokens(compared):
    found = compared()
    assert found["texts_with_equal_ids"] == found["texts_with_equal_greedy"] == 2
    assert found["largest_difference"] < 1e-4


def test_comparison_finds_a_difference_of_the_logits(compared):
    assert compared(error=0.5)["largest_difference"] > 0.01


@pytest.mark.slow
def test_command_writes_the_table_and_the_results(tmp_path, monkeypatch):
    write_gguf(tmp_path / "small.gguf")
    measured = {"tokens_per_second": 1.0, "peak_megabytes": 2.0}
    compared = {"texts_with_equal_ids": 10, "texts_with_equal_greedy": 10, "largest_difference": 0.0}
    monkeypatch.setattr(pretrained, "_PYTHON", tmp_path / "small.gguf")
    monkeypatch.setattr(pretrained, "_run_peer", lambda *_: measured)
    monkeypatch.setattr(pretrained, "_compare", lambda *_: compared)
    monkeypatch.setattr(pretrained, "_GREEDY", 8)
    with pytest.raises(SystemExit) as exit:
        main([*COMMAND, str(tmp_path / "small.gguf"), "--output", str(tmp_path / "out")])
    assert exit.value.code == 0
    found = json.loads((tmp_path / "out" / "pretrained.json").read_text())
    assert set(found["exported"]) == {"float32", "float16", "int8"}
    assert all(file["tokens_per_second"] > 0 and file["peak_megabytes"] > 20 for file in found["exported"].values())
    assert pretrained.format_table(found) in (tmp_path / "out" / "pretrained.md").read_text()


def test_command_without_the_peer_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "_PYTHON", tmp_path / "none")
    write_gguf(tmp_path / "small.gguf")
    with pytest.raises(SystemExit) as exit:
        main([*COMMAND, str(tmp_path / "small.gguf"), "--output", str(tmp_path / "out")])
    assert exit.value.code == 2
    assert "does not exist: make bench-peers" in capsys.readouterr().err

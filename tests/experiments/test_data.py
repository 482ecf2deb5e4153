import json
import os
import shutil

import msgspec
import numpy as np
import pytest

from experiments import data
from experiments.config_file import parse


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    words = "to be or not that is the question whether it nobler in mind".split()
    rows = [
        {"user": f"u{i}", "text": " ".join(generator.choice(words, 6))} for i in range(30) for _ in range(3 + i % 7)
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "public.txt").write_text("\n".join(" ".join(generator.choice(words, 6)) for _ in range(50)))
    text = 'source = "jsonl"\npath = "users.jsonl"\npublic = ["public.txt"]\nmin_tokens = 4\nheld_out = 0.3\n'
    return parse(f"[data]\n{text}[vocabulary]\nsize = 270\n[clients]\nsequence_length = 5\n", "test")


def targets(rows: np.ndarray) -> list[int]:
    """The predicted tokens in order, padding left out."""
    return [int(token) for token in rows[:, 1:].ravel() if token]


def test_training_and_held_out_targets_are_disjoint_and_rebuild_the_client(config, tmp_path):
    prepared = data.prepare(config, tmp_path / "vocabulary.json")
    held = 0
    for client in prepared.splits.train:
        tokens = prepared.store.tokens(prepared.store.index(client))
        training, held_out = targets(prepared.training(client)), targets(prepared.held_out(client))
        assert training + held_out == tokens[1:].tolist()
        assert len(held_out) <= 0.3 * (len(tokens) - 1)
        held += len(held_out)
    assert held > 50
    for client in (*prepared.splits.validation, *prepared.splits.test):
        tokens = prepared.store.tokens(prepared.store.index(client))
        assert targets(prepared.whole(client)) == tokens[1:].tolist()


def test_the_vocabulary_is_learned_from_public_text_alone_and_kept(config, tmp_path):
    path = tmp_path / "vocabulary.json"
    first = data.prepare(config, path).vocabulary
    (tmp_path / "users.jsonl").write_text(
        "".join(json.dumps({"user": f"v{i}", "text": "zz " * 9}) + "\n" for i in range(30))
    )
    assert data.prepare(config, None).vocabulary == first
    (tmp_path / "public.txt").write_text("other words entirely\n" * 60)
    assert data.prepare(config, path).vocabulary == first  # a run keeps its own


def test_public_text_inside_a_folder_of_clients_is_refused(config, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a\n")
    wrong = msgspec.structs.replace(config.data, source="folder", path="texts", public=("texts/a.txt",))
    with pytest.raises(ValueError, match="which is clients' text"):
        data.sources(msgspec.structs.replace(config, data=wrong))


@pytest.mark.parametrize("place", [shutil.copy, os.link, os.symlink])
@pytest.mark.parametrize("source", ["jsonl", "folder"])
def test_a_copy_of_clients_text_is_not_public(config, tmp_path, place, source):
    theirs = "users.jsonl"
    if source == "folder":
        (tmp_path / "texts" / "deep").mkdir(parents=True)
        theirs = "texts/deep/a.txt"
        (tmp_path / theirs).write_text("mine alone\n")
    place(tmp_path / theirs, tmp_path / "copy.txt")
    wrong = msgspec.structs.replace(config.data, source=source, path=theirs.partition("/")[0], public=("copy.txt",))
    with pytest.raises(ValueError, match="copy.txt, which is clients' text"):
        data.sources(msgspec.structs.replace(config, data=wrong))


def test_the_store_is_for_the_operator_only(config, tmp_path):
    data.prepare(config, None)
    assert data.STORES.stat().st_mode & 0o777 == 0o700


def test_paths_are_kept_absolute(config, tmp_path):
    kept = data.absolute(config).data
    assert kept.path == str(tmp_path / "users.jsonl") and kept.public == (str(tmp_path / "public.txt"),)

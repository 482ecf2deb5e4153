"""Imports that were killed leave drafts, which the next import to the same folder deletes; no others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import imported


@pytest.fixture
def gone():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_draft(folder, process):
    """Makes a draft as an import of this process does, and gives it the id of another process."""
    path = Path(f"{imported._draft_prefix(folder)}{process}.ab_c1.draft")
    (folder.parent / path / "inner").mkdir(parents=True)
    (folder.parent / path / "inner" / "weights.npz").write_text("x")
    return folder.parent / path


def test_drafts_of_processes_that_are_gone_are_deleted(tmp_path, gone):
    stale, running = make_draft(tmp_path / "model", gone), make_draft(tmp_path / "model", os.getppid())
    own = make_draft(tmp_path / "model", os.getpid())
    imported.remove_stale_drafts(tmp_path / "model")
    assert not stale.exists() and running.exists() and own.exists()


def test_what_is_no_draft_of_this_output_is_left(tmp_path, gone, monkeypatch):
    others = [make_draft(tmp_path / name, gone) for name in ("model2", "model.b", "odel", "m[o]del")]
    for name in (".model.draft", f".model.{gone}.draft", f"{imported._draft_prefix(tmp_path / 'model')}0.a.draft"):
        (tmp_path / name).mkdir()
        others.append(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "another-machine")
        others.append(make_draft(tmp_path / "model", gone))
    imported.remove_stale_drafts(tmp_path / "model")
    assert all(path.exists() for path in others)


def test_process_of_another_user_counts_as_running(tmp_path, gone, monkeypatch):
    def refuse(process, signal):
        assert (process, signal) == (gone, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    draft = make_draft(tmp_path / "model", gone)
    imported.remove_stale_drafts(tmp_path / "model")
    assert draft.exists()


def test_draft_of_an_import_is_named_after_its_process(tmp_path, monkeypatch):
    names: list[str] = []

    def stop(path, weights):
        names.extend(entry.name for entry in tmp_path.iterdir() if entry.is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr(imported, "save_weights", stop)
    (tmp_path / "model.gguf").write_text("x")
    checkpoint = type("Checkpoint", (), {"weights": {}})()
    with pytest.raises(KeyboardInterrupt):
        imported.write(checkpoint, tmp_path / "model.gguf", tmp_path / "model", "fedspeak import")
    prefix = re.escape(imported._draft_prefix(tmp_path / "model"))
    assert len(names) == 1 and re.fullmatch(rf"{prefix}{os.getpid()}\.\w+\.draft", names[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]

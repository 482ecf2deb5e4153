"""Options of decoding with a model's own heads: those that do not go together end in one line, before any work."""

from typing import Any

import pytest

from experiments.cli import main
from models.decoding.lattice_drafter import LatticeDrafter
from models.heads import HeadedLanguageModel
from tests.experiments.processes import call
from tests.models import exported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoding", "blockwise", "--drafter", "lookup"], "blockwise drafts with the model's own heads, not with"),
        (["--heads", "3"], "--heads has no use without --decoding blockwise or --drafter heads: drop it"),
        (["--drafter", "lookup", "--rescore", "lookup"], "--rescore has no use without --decoding blockwise or"),
        (["--decoding", "blockwise", "--alpha", "2"], "--alpha has no use without --rescore: drop it"),
        (["--decoding", "blockwise", "--heads", "3", "--draft-length", "2"], "--heads and --draft-length say the same"),
        (["--decoding", "blockwise", "--paths", "2", "--rescore", "lookup"], "--rescore lookup drafts one path: drop"),
        (["--decoding", "blockwise", "--decoding", "tree", "--paths", "2"], "--paths is for --decoding blockwise only"),
        (["--decoding", "blockwise", "--heads", "1"], "--heads"),
        (["--decoding", "blockwise", "--draft-length", "auto"], "does not go with --decoding blockwise"),
        (["--decoding", "blockwise"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together_end_in_one_line(tmp_path, options, message):
    code, out, err = call("export", "nowhere", *options, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_paths_count_with_a_draft_length_too(tmp_path, monkeypatch):
    base = exported.model()
    model = HeadedLanguageModel(base, 4)
    weights = dict(sorted((exported.weights(base) | model.init_heads(0)).items()))
    passed: list[Any] = []
    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (model, weights, exported.vocabulary()))
    monkeypatch.setattr("experiments.commands.export.export_and_check", lambda *_, **options: passed.append(options))
    for options in (["--draft-length", "2"], ["--heads", "3"], []):
        with pytest.raises(SystemExit) as end:
            main(["export", str(tmp_path), "--decoding", "blockwise", "--paths", "3", *options])
        assert not end.value.code
    assert [(options["draft_length"], options["paths"]) for options in passed] == [(2, 3), (2, 3), (3, 3)]
    assert all(isinstance(options["drafter"], LatticeDrafter) for options in passed)

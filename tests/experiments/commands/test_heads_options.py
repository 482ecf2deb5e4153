"""Options of decoding with a model's own heads: those that do not go together end in one line, before any work."""

from typing import Any

import pytest

from experiments.cli import main
from experiments.commands.heads_options import HeadsOptions
from models import katz, ngram
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.lattice_drafter import LatticeDrafter
from models.heads import HeadedLanguageModel
from models.recurrent_lm import RecurrentLanguageModel
from models.vocabulary import Vocabulary
from tests.experiments.model_folders import write_model
from tests.experiments.processes import call
from tests.models import exported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoding", "blockwise", "--drafter", "lookup"], "blockwise drafts with the model's own heads, not with"),
        (["--heads", "3"], "--heads has no use without --decoding blockwise or --drafter heads: drop it"),
        (["--drafter", "lookup", "--rescore", "lookup"], "--rescore has no use without --decoding blockwise or"),
        (["--decoding", "blockwise", "--alpha", "2"], "--alpha has no use without --rescore: drop it"),
        (
            ["--decoding", "blockwise", "--rescore", "none", "--alpha", "2"],
            "--alpha has no use with --rescore none: drop it, or name what refines the drafts",
        ),
        (["--decoding", "blockwise", "--heads", "3", "--draft-length", "2"], "--heads and --draft-length say the same"),
        (["--decoding", "blockwise", "--paths", "2", "--rescore", "lookup"], "--rescore lookup drafts one path: drop"),
        (["--decoding", "blockwise", "--decoding", "tree", "--paths", "2"], "--paths is for --decoding blockwise only"),
        (["--decoding", "blockwise", "--heads", "1"], "--heads"),
        (
            ["--decoding", "blockwise", "--top-k-heads", "0", "--rescore", "lookup"],
            "'--top-k-heads': 0 is not in the range",
        ),
        (
            ["--decoding", "blockwise", "--alpha", "nan", "--rescore", "lookup"],
            "--alpha nan: must be a number from 0 to",
        ),
        (["--decoding", "blockwise", "--rescore", ""], "--rescore '': must be none, ngram:FILE, lookup or the folder"),
        (["--decoding", "blockwise", "--rescore", "heads"], "--rescore 'heads': must be none, ngram:FILE, lookup or"),
        (["--decoding", "blockwise", "--rescore", "ngram"], "--rescore 'ngram': must be none, ngram:FILE, lookup or"),
        (["--decoding", "blockwise", "--rescore", "neural"], "--rescore 'neural': must be none, ngram:FILE, lookup or"),
        (["--decoding", "blockwise", "--draft-length", "auto"], "does not go with --decoding blockwise"),
        (["--decoding", "blockwise"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together_end_in_one_line(tmp_path, options, message):
    code, out, err = call("export", "nowhere", *options, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Writes models with heads, without, and of another vocabulary, and n-gram models."""
    folder, words = tmp_path_factory.mktemp("models"), exported.vocabulary()
    other = Vocabulary(words.pieces[:-1])
    write_model(folder / "heads", HeadedLanguageModel(exported.model(), 4), words)
    write_model(folder / "base", exported.model(), words)
    write_model(folder / "other", RecurrentLanguageModel("cifg", other.size, embedding=4, units=4), other)
    for name, own, order in (("order-4", words, 4), ("order-2", words, 2), ("of-other", other, 2)):
        katz.learn([own.document("the")], own.size, order, vocabulary_digest=own.digest).save(folder / f"{name}.npz")
    ngram.learn([words.document("the")], words.size, 2, vocabulary_digest=words.digest).save(folder / "kneser-ney.npz")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["heads", "--heads", "5"], "--heads 5: the model has 4; lower it, or train more"),
        (["heads", "--draft-length", "4"], "--draft-length 4: the model's 4 heads draft at most 3 tokens; lower it"),
        (["base"], "the model has no prediction heads that could draft: train them with fedspeak pretrain"),
        (["base", "--draft-length", "2"], "the model has no prediction heads that could draft: train them with"),
        (["heads", "--top-k-heads", "270", "--paths", "2", "--rescore", "ngram:order-2.npz"], "--top-k-heads 270: "),
        (["heads", "--top-k-heads", "270", "--rescore", "lookup"], "--top-k-heads 270: the vocabulary has 269 tokens"),
        (["heads", "--paths", "22"], "--paths 22: drafts of 3 tokens are 66 tokens, more than 63; give at most 21"),
        (["heads", "--rescore", "other"], "--rescore 'other': it has another vocabulary than the target: give none"),
        (["heads", "--rescore", "ngram:of-other.npz"], "--rescore 'ngram:of-other.npz': of-other.npz was learned"),
        (["heads", "--rescore", "ngram:of-other.npz", "--paths", "2"], "--rescore 'ngram:of-other.npz': of-other"),
        (["heads", "--rescore", "ngram:kneser-ney.npz", "--paths", "2"], "--rescore 'ngram:kneser-ney.npz': kneser"),
        (["heads", "--rescore", "ngram:none", "--paths", "2"], "--rescore 'ngram:none': none does not exist; give"),
        (["heads", "--rescore", "ngram:", "--paths", "2"], "--rescore 'ngram:': it names no file: give ngram:FILE"),
        (["heads", "--rescore", "folder"], "--rescore 'folder': folder does not exist: train one"),
        (["heads", "--rescore", "order-2.npz"], "--rescore 'order-2.npz': it is a file: give ngram:order-2.npz if it"),
        (["heads", "--rescore", "ngram:base"], "--rescore 'ngram:base': base cannot be read (Is a directory); give"),
        (["heads", "--rescore", "ngram:base", "--paths", "2"], "--rescore 'ngram:base': base cannot be read (Is a"),
        (
            ["heads", "--rescore", "ngram:order-4.npz", "--paths", "2", "--top-k-heads", "41"],
            "--top-k-heads 41: with --paths and an n-gram model of order 4, a position of a draft has 68,921 n-grams, "
            "more than 65,536; give at most 40",
        ),
        (
            ["heads", "--rescore", "ngram:order-2.npz", "--paths", "2", "--top-k-heads", "257"],
            "of order 2, a position of a draft has 66,049 n-grams, more than 65,536; give at most 256",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_ends_in_one_line(models, options, message):
    run, *others = options
    code, out, err = call("export", run, "--decoding", "blockwise", *others, folder=models)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_tree_that_is_deeper_than_the_heads_draft_ends_in_one_line(models):
    arguments = ("--drafter", "heads", "--decoding", "tree", "--tree", "2,2,1,1")
    code, out, err = call("export", "heads", *arguments, folder=models)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--tree 2,2,1,1: the model's 4 heads draft at most 3 tokens one after another; give at most 3 numbers" in err


@pytest.mark.parametrize(
    ("rescore", "paths", "kind"),
    [
        ("lookup", None, HeadsDrafter),
        ("ngram:order-2.npz", None, HeadsDrafter),
        ("ngram:order-2.npz", 2, LatticeDrafter),
    ],
)
def test_drafter_has_the_numbers_that_were_given(models, monkeypatch, rescore, paths, kind):
    monkeypatch.chdir(models)
    for top_k, alpha, expected in ((7, 2.5, (7, 2.5)), (None, None, (16, 1.0)), (3, 0.0, (3, 0.0))):
        own = HeadsOptions(None, rescore, top_k, paths, alpha).drafter(None, None, exported.vocabulary(), 16, 3)
        assert type(own) is kind and (own.top_k, own.alpha) == expected


@pytest.mark.parametrize(("top_k", "heads", "warns"), [(16, 4, False), (17, 4, True), (64, 3, False)])
def test_wide_lattice_of_an_n_gram_model_of_order_4_is_warned_of(models, capsys, top_k, heads, warns):
    """A draft of h - 1 tokens has n-grams of at most as many."""
    own = HeadsOptions(heads, f"ngram:{models}/order-4.npz", top_k, 2, None)
    drafter = own.drafter(None, None, exported.vocabulary(), 16, heads - 1)
    assert isinstance(drafter, LatticeDrafter) and drafter.top_k == top_k
    expected = (
        "warning: --top-k-heads 17: with --paths and an n-gram model of order 4, a position of a draft has 4,913 "
        "n-grams and takes long; 16 is quick\n"
    )
    assert capsys.readouterr().err == (expected if warns else "")


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

import numpy as np
import pytest

from experiments import config_file
from experiments.runs import RunFolder
from models import katz
from models.katz import KatzModel
from models.ngram import NGramModel, learn
from models.recurrent_lm import RecurrentLanguageModel
from tests.experiments.model_folders import write_model
from tests.experiments.processes import call
from tests.models import exported

WORDS = exported.vocabulary()
TEXT = "the and in\nthe other and the end\n" * 5


@pytest.fixture
def place(tmp_path):
    (tmp_path / "public.txt").write_text(TEXT)
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    write_model(tmp_path / "model", RecurrentLanguageModel("cifg", WORDS.size, embedding=4, units=4), WORDS)
    return tmp_path


def assert_equal(found, expected, values="discounted"):
    assert found.vocabulary_digest == WORDS.digest
    for name in ("tokens", values, "following"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_ngram_learns_from_text_files_with_the_models_vocabulary(place):
    options = ("--order", "2", "--max-entries", "9", "--max-successors", "3", "--output", "own.npz")
    code, out, err = call("ngram", "public.txt", "public.txt", "--vocabulary", "model", *options, folder=place)
    assert (code, err) == (0, "")
    document = WORDS.document(TEXT)
    found = NGramModel.load(place / "own.npz")
    assert_equal(found, learn([document, document], WORDS.size, 2, 9, 3))
    assert out.startswith(f"wrote own.npz: order 2, 9 n-grams after {len(found.backoff) - 1} contexts from ")
    assert f"from {2 * len(document)} tokens" in out


def test_ngram_without_text_files_learns_from_the_public_text_of_the_config(place):
    settings = config_file.parse(f'[data]\nsource = "jsonl"\npublic = ["{place}/public.txt"]\n', "config.toml")
    RunFolder(place / "run").create(settings)
    WORDS.save(place / "run" / "vocabulary.json")
    code, _, err = call("ngram", "--vocabulary", "run", folder=place)
    assert (code, err) == (0, "")
    assert_equal(NGramModel.load(place / "ngram.npz"), learn([WORDS.document(TEXT)], WORDS.size, 3))


@pytest.mark.parametrize(("options", "max_successors"), [((), None), (("--max-successors", "2"), 2)])
def test_ngram_learns_a_katz_model(place, options, max_successors):
    options = ("--smoothing", "katz", "--order", "4", "--min-counts", "1,2", *options, "--output", "katz.npz")
    code, out, err = call("ngram", "public.txt", "--vocabulary", "model", *options, folder=place)
    assert (code, err) == (0, "") and out.startswith("wrote katz.npz: order 4, ")
    expected = katz.learn([WORDS.document(TEXT)], WORDS.size, 4, 200_000, max_successors, min_counts=(1, 2))
    assert_equal(KatzModel.load(place / "katz.npz"), expected, "probability")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", "model"], "model names no public text (no config.toml): give text files to learn from"),
        (["public.txt", "--vocabulary", "none"], "none holds no model (no vocabulary.json): give the folder of a"),
        (["none.txt", "--vocabulary", "model"], "none.txt: No such file or directory"),
        (["latin.txt", "--vocabulary", "model"], "latin.txt: not UTF-8 (byte 3): convert it first"),
        (["public.txt"], "Missing option '--vocabulary'"),
        (["public.txt", "--vocabulary", "model", "--order", "6"], "6 is not in the range 1<=x<=5"),
        (["public.txt", "--vocabulary", "model", "--output", "no/x.npz"], "no/x.npz could not be written"),
        (["public.txt", "--vocabulary", "model", "--output", ""], ". is a folder: give the name of a file"),
        (["public.txt", "--vocabulary", "model", "--min-counts", "1,x"], "--min-counts '1,x': must be integers with"),
        (["public.txt", "--vocabulary", "model", "--min-counts", "0"], "min_counts = 0: must be an integer >= 1"),
        (["public.txt", "--vocabulary", "model", "--smoothing", "none"], "'none' is not one of 'kneser-ney', 'katz'"),
        (["blank.txt", "--vocabulary", "model"], "blank.txt holds no text: give public text to learn from"),
    ],
)
def test_ngram_refuses_with_one_line(place, arguments, message):
    code, out, err = call("ngram", *arguments, folder=place)
    assert (code, out) == (2, "")
    assert err.startswith("fedspeak: error: ") and message in err and err.count("\n") == 1
    assert not (place / "ngram.npz").exists()

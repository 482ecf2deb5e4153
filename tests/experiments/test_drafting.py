from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from experiments.drafting import load_drafter, load_katz
from models import katz
from models.decoding.drafters import ModelDrafter
from models.decoding.katz_drafter import KatzDrafter
from models.decoding.lookup_drafter import LookupDrafter
from models.decoding.ngram_drafter import NGramDrafter
from models.decoding.rounded_weights import quantized
from models.decoding.shared_vocabulary import SharedVocabularyDrafter
from models.ngram import learn
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from models.vocabulary import Vocabulary
from tests.experiments.model_folders import write_model
from tests.models import exported

WORDS = exported.vocabulary()
MODEL = exported.model()
WEIGHTS = exported.weights(MODEL)
TOKENS = WORDS.prompt("the and")


def load(name):
    return load_drafter(str(name), MODEL, WEIGHTS, WORDS, context=16)


def logits(drafter):
    state, found = drafter.initial_state(1), None
    for token in TOKENS:
        found, state = drafter.step(tf.constant([token]), state)
    assert found is not None
    return found[0].numpy()


def test_self_is_the_target_with_weights_rounded_to_int8():
    expected = logits(ModelDrafter(MODEL, quantized(MODEL, WEIGHTS)))
    np.testing.assert_array_equal(logits(load("self")), expected)
    assert not np.array_equal(expected, logits(ModelDrafter(MODEL, WEIGHTS)))


def test_lookup_remembers_the_context():
    drafter = load("lookup")
    assert isinstance(drafter, LookupDrafter) and (drafter.vocabulary_size, drafter.context) == (WORDS.size, 16)


def test_folder_of_the_same_vocabulary_drafts_with_its_model(tmp_path):
    model = RecurrentLanguageModel("cifg", WORDS.size, embedding=4, units=4)
    weights = write_model(tmp_path / "small", model, WORDS)
    np.testing.assert_array_equal(logits(load(tmp_path / "small")), logits(ModelDrafter(model, weights)))


@pytest.mark.parametrize("context", [64, 512])
def test_folder_of_another_vocabulary_drafts_the_shared_tokens_in_a_larger_context(tmp_path, context):
    own = Vocabulary((*WORDS.pieces[:-5], b"other"))
    model = TransformerLanguageModel(own.size, embedding=4, blocks=1, heads=1, feed_forward=4, context=context)
    write_model(tmp_path / "small", model, own)
    drafter: Any = load(tmp_path / "small")
    assert isinstance(drafter, SharedVocabularyDrafter)
    inner: Any = drafter.drafter
    assert inner.model.positions_cached == min(context, 4 * 16 + 16)
    assert np.isfinite(logits(drafter)).any()


def test_ngram_file_of_the_same_vocabulary_drafts(tmp_path):
    tables = learn([WORDS.document("the and the and")], WORDS.size, 2, vocabulary_digest=WORDS.digest)
    tables.save(tmp_path / "model.npz")
    drafter = load(f"ngram:{tmp_path / 'model.npz'}")
    assert isinstance(drafter, NGramDrafter)
    np.testing.assert_array_equal(logits(drafter), logits(NGramDrafter(tables)))


def test_ngram_file_with_katz_smoothing_drafts_and_rescores(tmp_path):
    model = katz.learn([WORDS.document("the and the and")], WORDS.size, 2, vocabulary_digest=WORDS.digest)
    model.save(tmp_path / "model.npz")
    drafter = load(f"ngram:{tmp_path / 'model.npz'}")
    assert isinstance(drafter, KatzDrafter)
    np.testing.assert_array_equal(logits(drafter), logits(KatzDrafter(model)))
    np.testing.assert_array_equal(load_katz(tmp_path / "model.npz", WORDS).probability, model.probability)


def test_a_katz_model_is_asked_for_where_the_file_has_another_smoothing(tmp_path):
    learn([[1, 5, 6]], WORDS.size, 2, vocabulary_digest=WORDS.digest).save(tmp_path / "model.npz")
    with pytest.raises(
        ValueError, match=r"model.npz has another smoothing: learn it with fedspeak ngram --smoothing katz"
    ):
        load_katz(tmp_path / "model.npz", WORDS)


@pytest.mark.parametrize("learn_model", [learn, katz.learn])
@pytest.mark.parametrize("digest", ["", "ab" * 32])
def test_ngram_file_of_another_or_no_vocabulary_is_refused(tmp_path, digest, learn_model):
    learn_model([[1, 5, 6]], WORDS.size, 2, vocabulary_digest=digest).save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"^drafter = 'ngram:.*model.npz': .* was learned with another vocabulary"):
        load(f"ngram:{tmp_path / 'model.npz'}")


def test_foreign_vocabulary_is_refused(tmp_path):
    own = Vocabulary((*WORDS.pieces[:259], *(f"ж{letter}".encode() for letter in "абвгдежзиклм")))
    write_model(tmp_path / "small", RecurrentLanguageModel("cifg", own.size, embedding=4, units=4), own)
    with pytest.raises(ValueError, match=r"^drafter = '.*small': the drafter's vocabulary \(271 ids\) has 0.0%"):
        load(tmp_path / "small")


def test_context_that_is_too_small_is_refused(tmp_path):
    model = TransformerLanguageModel(WORDS.size, embedding=4, blocks=1, heads=1, feed_forward=4, context=8)
    write_model(tmp_path / "small", model, WORDS)
    with pytest.raises(ValueError, match=r"^drafter = '.*small': cache_length: 16 is more than the model's context 8"):
        load(tmp_path / "small")


def test_what_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, reason in (("nowhere", "nowhere does not exist: .*"), ("ngram:none.npz", "none.npz does not exist")):
        message = (
            f"^drafter = '{name}': {reason}; a drafter is the folder of a model, lookup, self, heads or ngram:FILE$"
        )
        with pytest.raises(FileNotFoundError, match=message):
            load(name)
    with pytest.raises(ValueError, match="^drafter = 'ngram:': it names no file: give ngram:FILE$"):
        load("ngram:")


def test_file_that_is_named_as_a_folder_and_folder_as_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    katz.learn([[1, 5, 6]], WORDS.size, 2, vocabulary_digest=WORDS.digest).save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match="^drafter = 'model.npz': it is a file: give ngram:model.npz if it is an n-gr"):
        load("model.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        OSError, match=r"^drafter = 'ngram:folder': folder cannot be read \(Is a directory\); a drafter"
    ):
        load("ngram:folder")


def test_damaged_ngram_file_is_refused(tmp_path):
    (tmp_path / "model.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"^drafter = .*: not an n-gram model, or damaged"):
        load(f"ngram:{tmp_path / 'model.npz'}")

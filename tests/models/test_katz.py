import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import ngram
from models.katz import KatzModel, learn
from tests.models.test_ngram import LIMITS, SIZE, make_rows
from tests.oracles.katz import Katz


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("min_counts", [(), (1, 2, 3)])
def test_probabilities_equal_the_dictionary_oracle_after_every_context(order, min_counts):
    rows, min_counts = make_rows(order), min_counts[: order - 1]
    text = [*rows[3], *np.random.default_rng(1).integers(0, SIZE, 9)]
    for max_entries, max_successors in LIMITS:
        model = learn(rows, SIZE, order, max_entries, max_successors, min_counts=min_counts)
        oracle = Katz(rows.tolist(), SIZE, order, min_counts, max_entries, max_successors)
        assert len(model.tokens) == len(oracle.stored) <= max_entries and model.max_successors <= max_successors
        for end in range(len(text)):
            row = model.probabilities(text[:end])
            assert abs(row.sum() - 1) < 1e-12 and row.min() > 0
            np.testing.assert_allclose(row, [oracle.probability(text[:end], t) for t in range(SIZE)], rtol=1e-11)
            np.testing.assert_allclose([model.log_prob(text[:end], t) for t in range(SIZE)], np.log(row), atol=1e-12)


def test_bigram_by_hand():
    """One of 2 3, 2 3, 2 1 and 3 2 occurs twice, two once: D = 2 / (2 + 2 * 1) = 1/2, and n(2) = 3."""
    model = learn([[2, 3, 2, 3], [2, 1]], 4, 2)
    p3, p1 = (2 - 0.5) / 3, (1 - 0.5) / 3
    # Of the tokens 3, 2, 3, 1, one occurs twice and two once: D = 1/2 again, and 3 * D / 4 is spread over 4 tokens.
    spread = 3 * 0.5 / 4 / 4
    unigram = np.array([spread, 0.5 / 4 + spread, 0.5 / 4 + spread, 1.5 / 4 + spread])
    weight = (1 - p3 - p1) / (unigram[0] + unigram[2])
    np.testing.assert_allclose(model.probabilities([2]), [weight * unigram[0], p1, weight * unigram[2], p3], rtol=1e-12)
    np.testing.assert_allclose(model.probabilities([]), unigram, rtol=1e-12)
    np.testing.assert_allclose(model.probabilities([0]), unigram, rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=12), min_size=1, max_size=6),
    order=st.integers(1, 4),
    max_entries=st.integers(1, 40),
    min_count=st.integers(1, 3),
    context=st.lists(st.integers(0, 4), max_size=5),
)
def test_every_distribution_sums_to_one(rows, order, max_entries, min_count, context):
    if not any(token for row in rows for token in row[1:]):
        rows = [*rows, [1, 2]]
    model = learn(rows, 5, order, max_entries, min_counts=[min_count] * (order - 1))
    assert abs(model.probabilities(context).sum() - 1) < 1e-12
    assert abs(sum(np.exp(model.log_prob(context, token)) for token in range(5)) - 1) < 1e-12


def test_only_the_last_tokens_of_a_history_count_and_padding_stands_for_its_beginning():
    model = learn(make_rows(), SIZE, 3)
    for token in range(SIZE):
        assert model.log_prob([5, 1, 2, 3], token) == model.log_prob([2, 3], token)
        assert model.log_prob([0, 3], token) == model.log_prob([3], token)
        assert model.log_prob([0, 0], token) == model.log_prob([], token)


def test_saved_model_is_loaded_bit_for_bit(tmp_path):
    model = learn(make_rows(), SIZE, 4, vocabulary_digest="ab12")
    model.save(tmp_path / "model.npz")
    again = KatzModel.load(tmp_path / "model.npz")
    assert (again.order, again.vocabulary_digest) == (4, "ab12")
    for name in ("unigram", "first", "begins", "backoff", "shorter", "tokens", "probability", "following"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


def test_load_refuses_damaged_files_and_models_of_another_smoothing(tmp_path):
    path = tmp_path / "model.npz"
    learn(make_rows(), SIZE, 3).save(path)
    assert KatzModel.wrote(path) and not ngram.NGramModel.wrote(path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:-40], content[:200]):
        path.write_bytes(damaged)
        assert not KatzModel.wrote(path)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not an n-gram model, or damaged .*: learn it"):
            KatzModel.load(path)
    ngram.learn(make_rows(), SIZE, 3).save(path)
    with pytest.raises(ValueError, match="another format, 'fedspeak n-gram 1'"):
        KatzModel.load(path)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("unigram", 2, np.nan),
        ("backoff", 1, np.nan),
        ("backoff", 1, np.inf),
        ("backoff", 1, 9.0),
        ("backoff", -1, 1.1),
        ("probability", 0, np.nan),
        ("probability", 0, 0.0),
        ("probability", -1, 0.99),
        ("tokens", 0, SIZE),
        ("following", 0, -1),
        ("shorter", 1, 1),
    ],
)
def test_a_changed_table_is_refused(name, place, value):
    model = learn(make_rows(), SIZE, 3)
    changed = getattr(model, name).copy()
    changed[place] = value
    with pytest.raises(ValueError, match="^not an n-gram model: "):
        replace(model, **{name: changed})


def test_successors_in_another_order_are_refused():
    model = learn(make_rows(), SIZE, 3)
    begin = int(model.begins[np.flatnonzero(np.diff(model.begins) >= 2)[0]])
    changes = {}
    for name in ("tokens", "probability", "following"):
        changes[name] = getattr(model, name).copy()
        changes[name][begin : begin + 2] = changes[name][begin : begin + 2][::-1]
    with pytest.raises(ValueError, match="the successors of a state do not ascend"):
        replace(model, **changes)


@pytest.mark.parametrize("learn_model", [learn, ngram.learn])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 6}, "order = 6: must be an integer from 1 to 5"),
        ({"max_entries": 0}, "max_entries = 0: must be an integer >= 1"),
        ({"max_successors": 0}, "max_successors = 0: must be an integer >= 1"),
        ({"min_counts": [2, 0]}, "min_counts = 0: must be an integer >= 1"),
        ({"min_counts": [1.5]}, "min_counts = 1.5: must be an integer >= 1"),
        (
            {"min_counts": [1, 2, 3]},
            r"min_counts = \[1, 2, 3\]: must be at most 2 numbers, for n-grams of 2 to 3 tokens",
        ),
        ({"sequences": []}, "the sequences have no token after another"),
    ],
)
def test_learn_refuses_what_it_cannot_use(learn_model, changes, message):
    with pytest.raises(ValueError, match=message):
        learn_model(**{"sequences": make_rows(), "vocabulary_size": SIZE, "order": 3, **changes})

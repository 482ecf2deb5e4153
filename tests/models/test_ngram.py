import re
from dataclasses import replace

import numpy as np
import pytest

from models.ngram import NGramModel, learn
from tests.oracles.back_off import BackOff
from tests.oracles.ngram import KneserNeyBigram

SIZE = 7


def make_rows(seed=0, rows=12, length=14):
    """Draws skewed rows of tokens 1 to 6 that end in padding; one has padding in its middle."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(1 + rng.geometric(0.45, (rows, length)), SIZE - 1)
    for row, end in zip(tokens, rng.integers(1, length + 1, rows), strict=True):
        row[end:] = 0
    tokens[0, 4] = 0
    return tokens


LIMITS = [(1000, 50), (1000, 2), (17, 50), (25, 3), (1, 1)]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("max_entries", "max_successors"), LIMITS)
def test_probabilities_equal_the_dictionary_oracle_after_every_context(order, max_entries, max_successors):
    rows = make_rows(order)
    model = learn(rows, SIZE, order, max_entries, max_successors)
    oracle = BackOff(rows.tolist(), SIZE, order, max_entries, max_successors)
    assert len(model.tokens) == len(oracle.stored) <= max_entries and model.max_successors <= max_successors
    rng = np.random.default_rng(1)
    text = [*rows[3], *rng.integers(0, SIZE, 12)]
    for end in range(len(text)):
        row = model.probabilities(text[:end])
        assert abs(row.sum() - 1) < 1e-12 and row.min() > 0
        np.testing.assert_allclose(row, [oracle.probability(text[:end], t) for t in range(SIZE)], rtol=1e-12)


def test_bigram_without_limits_equals_the_oracle_of_the_baselines():
    rows = make_rows(3, rows=40)
    rows[0, 4] = 2
    model, oracle = learn(rows, SIZE, 2), KneserNeyBigram([[t for t in row if t] for row in rows.tolist()], SIZE)
    for context in range(1, SIZE):
        expected = [oracle.probability(context, token) for token in range(SIZE)]
        np.testing.assert_allclose(model.probabilities([context]), expected, rtol=1e-12)


def test_without_limits_the_highest_order_knows_the_text_best():
    rows = make_rows(rows=60)

    def loss(model):
        pairs = [
            (row[:end], row[end]) for row in rows.tolist() for end in range(1, len(row)) if 0 not in row[: end + 1]
        ]
        return -np.mean([np.log(model.probabilities(context)[token]) for context, token in pairs])

    losses = [loss(learn(rows, SIZE, order)) for order in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True)


def test_rows_of_any_shapes_count_the_same():
    rows = make_rows()
    one, other = learn(rows, SIZE, 3), learn([rows[:5], rows[np.newaxis, 5:], *rows[:0]], SIZE, 3)
    np.testing.assert_array_equal(one.discounted, other.discounted)
    np.testing.assert_array_equal(one.following, other.following)


def test_saved_model_is_loaded_bit_for_bit(tmp_path):
    model = learn(make_rows(), SIZE, 4, vocabulary_digest="ab12")
    model.save(tmp_path / "model.npz")
    again = NGramModel.load(tmp_path / "model.npz")
    assert (again.order, again.vocabulary_digest) == (4, "ab12")
    for name in ("unigram", "first", "begins", "backoff", "shorter", "tokens", "discounted", "following"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


def test_load_refuses_other_and_damaged_files(tmp_path):
    path = tmp_path / "model.npz"
    learn(make_rows(), SIZE, 3).save(path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:-40], content[:200]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not an n-gram model, or damaged .*: learn it"):
            NGramModel.load(path)
    np.savez(path, format=np.array("another"))
    with pytest.raises(ValueError, match="another format"):
        NGramModel.load(path)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("unigram", 2, np.nan),
        ("unigram", 2, 0.9),
        ("backoff", 1, np.nan),
        ("backoff", 1, -0.5),
        ("backoff", 0, 0.5),
        ("discounted", 0, np.nan),
        ("discounted", 0, 0.99),
        ("tokens", 0, SIZE),
        ("tokens", 0, -1),
        ("first", 3, 10_000),
        ("following", 0, -1),
        ("shorter", 1, 1),
        ("shorter", 3, 5),
        ("begins", 1, 1),
        ("begins", 3, 10_000),
    ],
)
def test_a_changed_table_is_refused(name, place, value):
    model = learn(make_rows(), SIZE, 3)
    changed = getattr(model, name).copy()
    changed[place] = value
    with pytest.raises(ValueError, match="^not an n-gram model: "):
        replace(model, **{name: changed})


def test_a_successor_stored_twice_is_refused():
    model = learn(make_rows(), SIZE, 3)
    state = int(np.flatnonzero(np.diff(model.begins) >= 2)[0])
    changed = model.tokens.copy()
    changed[model.begins[state] + 1] = changed[model.begins[state]]
    with pytest.raises(ValueError, match="a state has a successor twice"):
        replace(model, tokens=changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 0}, "order = 0: must be an integer from 1 to 5"),
        ({"order": 6}, "order = 6: must be an integer from 1 to 5"),
        ({"order": 2.0}, "order = 2.0: must be an integer from 1 to 5"),
        ({"max_entries": 0}, "max_entries = 0: must be an integer >= 1"),
        ({"max_entries": float("nan")}, "max_entries = nan: must be an integer >= 1"),
        ({"max_successors": True}, "max_successors = True: must be an integer >= 1"),
        ({"vocabulary_size": 0}, "vocabulary_size = 0: must be an integer >= 1"),
        ({"vocabulary_size": 5}, "tokens from 0 to 6 are not all in the vocabulary of 5"),
        ({"sequences": [[0, 0, 0], [3]]}, "the sequences have no token after another"),
        ({"sequences": []}, "the sequences have no token after another"),
        ({"sequences": [[-1, 2]]}, "tokens from -1 to 2 are not all"),
        ({"sequences": np.arange(3)}, "sequences is a single row"),
        ({"sequences": [[0.5, 1.0]]}, "must be rows of integers"),
        ({"sequences": [3]}, "must be rows of integers"),
    ],
)
def test_learn_refuses_what_it_cannot_use(changes, message):
    arguments = {"sequences": make_rows(), "vocabulary_size": SIZE, **changes}
    with pytest.raises(ValueError, match=message):
        learn(**arguments)

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.clients import TokenStore, sequences
from fl.sources import jsonl
from fl.splits import hold_out, split_clients, split_store
from models.vocabulary import SMALLEST, learn

IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=40)
SEED = st.integers(-(2**127), 2**127 - 1)
SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda shares: sum(shares) <= 1)


@given(ids=IDS, shares=SHARES, seed=SEED)
def test_split_clients_puts_each_client_in_exactly_one_set(ids, shares, seed):
    splits = split_clients(ids, shares[0], shares[1], seed)
    assert sorted([*splits.train, *splits.validation, *splits.test]) == sorted(ids)


@given(ids=IDS, new=st.text("abc", min_size=9, max_size=9), place=st.integers(0, 40), shares=SHARES, seed=SEED)
def test_split_clients_moves_no_other_client_when_one_is_added(ids, new, place, shares, seed):
    before = split_clients(ids, shares[0], shares[1], seed)
    after = split_clients([*ids[:place], new, *ids[place:]], shares[0], shares[1], seed)
    for old, grown in zip(before, after, strict=True):
        assert [client for client in grown if client != new] == list(old)


@given(ids=IDS, shares=SHARES, seed=SEED, order=st.randoms())
def test_split_clients_does_not_depend_on_order(ids, shares, seed, order):
    shuffled = order.sample(ids, len(ids))
    for left, right in zip(
        split_clients(ids, shares[0], shares[1], seed),
        split_clients(shuffled, shares[0], shares[1], seed),
        strict=True,
    ):
        assert set(left) == set(right)


def test_split_clients_keeps_shares_and_depends_on_seed():
    ids = [f"client {number}" for number in range(20_000)]
    splits = split_clients(ids, 0.1, 0.3, seed=0)
    # The sizes are binomial; each is beyond five standard deviations with a probability below 1e-6.
    for part, share in ((splits.validation, 0.1), (splits.test, 0.3)):
        assert abs(len(part) - share * 20_000) < 5 * math.sqrt(20_000 * share * (1 - share))
    other = split_clients(ids, 0.1, 0.3, seed=1)
    # Another seed gives an independent split: three in ten of the first one's test clients are test clients again.
    both = len(set(splits.test) & set(other.test))
    assert abs(both - 0.09 * 20_000) < 5 * math.sqrt(20_000 * 0.09 * 0.91)


def test_split_clients_with_larger_test_share_keeps_test_clients():
    ids = [f"client {number}" for number in range(500)]
    assert set(split_clients(ids, 0.1, 0.1, 7).test) < set(split_clients(ids, 0.1, 0.2, 7).test)


def test_split_store_equals_split_clients(tmp_path):
    ids = sorted(f"client {number} é" for number in range(300))
    (tmp_path / "rows").write_text("".join(json.dumps({"user": name, "text": "a"}) + "\n" for name in ids))
    source, words = jsonl.load(tmp_path / "rows", "user", "text"), learn([], SMALLEST)
    for seed in (0, 7):
        store = TokenStore.build(tmp_path / "store", source, words, split_seed=seed)
        assert split_store(store, 0.2, 0.3) == split_clients(ids, 0.2, 0.3, seed)
    with pytest.raises(ValueError, match="test = 2: must be from 0 to 1"):
        split_store(store, 0.2, 2)


def test_split_clients_equals_earlier_versions():
    # A changed split would turn test clients of finished runs into training clients.
    earlier = (("0", "1", "5", "11"), ("2", "3", "7", "8"), ("4", "6", "9", "10"))
    assert split_clients(map(str, range(12)), 0.3, 0.3, 5) == earlier


def test_split_clients_accepts_shares_of_zero_and_one():
    ids = ["a", "b", "c"]
    assert split_clients(ids, 0, 0, 0) == (("a", "b", "c"), (), ())
    assert split_clients(ids, 0, 1, 0) == ((), (), ("a", "b", "c"))
    assert split_clients([], 0.5, 0.5, 0) == ((), (), ())


@pytest.mark.parametrize(
    ("validation", "test", "seed", "reason"),
    [
        (-0.1, 0.1, 0, "validation = -0.1: must be from 0 to 1"),
        (0.1, 1.1, 0, "test = 1.1: must be from 0 to 1"),
        (math.nan, 0.1, 0, "validation = nan: must be"),
        (0.1, math.nan, 0, "test = nan: must be"),
        (0.6, 0.6, 0, "validation = 0.6 and test = 0.6: their sum must be at most 1"),
        (0.1, 0.1, 2**127, "does not fit 128 bits"),
    ],
)
def test_split_clients_refuses_invalid_shares_and_seeds(validation, test, seed, reason):
    with pytest.raises(ValueError, match=reason):
        split_clients(["a"], validation, test, seed)


def test_split_clients_refuses_duplicate_id():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        split_clients(["a", "b", "a"], 0.1, 0.1, 0)


@st.composite
def client_tokens(draw):
    sentences = draw(st.lists(st.lists(st.integers(3, 50), max_size=6), max_size=8))
    return np.array([1, *(token for sentence in sentences for token in [*sentence, 2])], np.uint16)


@given(tokens=client_tokens(), fraction=st.floats(0, 1, exclude_max=True))
def test_hold_out_parts_have_all_targets_once(tokens, fraction):
    train, held = hold_out(tokens, fraction)
    assert np.concatenate([train[1:], held[1:]]).tolist() == tokens[1:].tolist()
    assert held[0] == train[-1]
    assert len(held) - 1 <= fraction * (len(tokens) - 1)
    # The held-out part consists of whole sentences, as many as fit.
    assert train[-1] == 2 or len(tokens) == 1 or len(train) == 1
    ends = [place for place, token in enumerate(tokens) if token == 2 and place < len(train) - 1]
    assert not ends or len(tokens) - 1 - ends[-1] > fraction * (len(tokens) - 1)


def test_hold_out_cuts_example_at_sentence_ends():
    tokens = np.array([1, 10, 11, 2, 12, 2, 13, 2])
    train, held = hold_out(tokens, 0.3)
    assert train.tolist() == [1, 10, 11, 2, 12, 2]
    assert held.tolist() == [2, 13, 2]
    assert hold_out(tokens, 0.6)[1].tolist() == [2, 12, 2, 13, 2]
    assert len(sequences(hold_out(tokens, 0.1)[1], 4)) == 0
    assert np.shares_memory(train, tokens)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_hold_out_refuses_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="outside"):
        hold_out(np.array([1, 5, 2]), fraction)


def test_hold_out_refuses_two_dimensional_tokens():
    with pytest.raises(ValueError, match="one dimension"):
        hold_out(np.ones((2, 3), np.int32), 0.1)

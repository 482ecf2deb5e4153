import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.client_ids import ClientIds, places


def kept(ids) -> ClientIds:
    encoded = [client.encode() for client in ids]
    bounds = np.concatenate([[0], np.cumsum([*map(len, encoded)])]).astype(np.int64)
    return ClientIds(bounds[:-1], bounds[1:], b"".join(encoded))


IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=4), unique=True, max_size=30).map(sorted)


@given(ids=IDS, chosen=st.sets(st.integers(0, 29)), other=st.text(max_size=4))
def test_client_ids_equal_sequence_of_same_strings(ids, chosen, other):
    numbers = np.array(sorted(number for number in chosen if number < len(ids)), np.int64)
    subset = [ids[number] for number in numbers]
    for found, wanted in ((kept(ids), ids), (kept(ids).take(numbers), subset)):
        assert len(found) == len(wanted)
        assert list(found) == wanted and found == wanted and found == tuple(wanted)
        assert [found[place] for place in range(-len(wanted), len(wanted))] == wanted + wanted
        assert found[1:4] == tuple(wanted[1:4])
        assert [found.find(client) for client in wanted] == list(range(len(wanted)))
        assert [client in found for client in [*ids, other, 3]] == [client in wanted for client in [*ids, other, 3]]
        assert found != [*wanted, "more"] and (not wanted or found != ["\x00 other", *wanted[1:]])
        with pytest.raises(IndexError):
            found[len(wanted)]


def test_client_id_read_twice_is_one_object():
    ids = kept(["a", "client 7"])
    assert ids[1] is ids[1]


def test_find_returns_none_for_lone_surrogate():
    assert kept(["a", "é"]).find("\ud800") is None


def test_find_looks_at_logarithmic_number_of_ids(monkeypatch):
    bounds = np.arange(0, 7_000_001, 7)
    ids = ClientIds(bounds[:-1], bounds[1:], b"".join(b"%07d" % number for number in range(1_000_000)))
    wanted = [ids[number] for number in range(0, 1_000_000, 1000)]
    looked_at: list[int] = []
    encoded = ClientIds._encoded

    def counted(self, number):
        looked_at.append(number)
        return encoded(self, number)

    monkeypatch.setattr(ClientIds, "_encoded", counted)
    assert [ids.find(client) for client in wanted] == list(range(0, 1_000_000, 1000))
    assert len(looked_at) <= 22 * len(wanted)  # log2 of a million is below 20


def test_places_are_uniform_and_depend_on_seed():
    ids = [f"client {number}" for number in range(20_000)]
    first, second = places(ids, 0), places(ids, 1)
    for found in (first, second, (first - second) % 1):
        assert found.dtype == np.float64 and found.min() >= 0 and found.max() < 1
        counts = np.histogram(found, 50, (0, 1))[0]
        # A chi-square variable with 49 degrees of freedom exceeds 110 with probability 2e-6.
        assert ((counts - 400) ** 2 / 400).sum() < 110
    assert places(ids[5:6], 0) == first[5]


@pytest.mark.parametrize("seed", [2**127, -(2**127) - 1])
def test_places_refuse_seed_of_more_than_128_bits(seed):
    with pytest.raises(ValueError, match=f"split_seed = {seed} does not fit 128 bits"):
        places(["a"], seed)

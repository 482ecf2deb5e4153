import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.cohorts import draw_cohort
from privacy.sampling import Cyclic, FixedSize, Poisson


def seed_of_round(round_number: int) -> int:
    return int.from_bytes(hashlib.sha256(b"test %d" % round_number).digest()[:16], "big")


SAMPLINGS = st.one_of(
    st.floats(0.01, 1).map(Poisson), st.integers(1, 20).map(FixedSize), st.integers(1, 20).map(Cyclic)
)


@given(SAMPLINGS, st.integers(20, 60), st.integers(0, 1000))
def test_a_cohort_is_a_set_of_clients_that_depends_on_key_and_round_alone(sampling, population, round_number):
    cohort = draw_cohort(sampling, population, round_number, seed_of_round)
    assert np.all(np.diff(cohort) > 0)
    assert np.all((0 <= cohort) & (cohort < population))
    # Other rounds in between change nothing.
    for other in (0, round_number + 1, 7):
        draw_cohort(sampling, population, other, seed_of_round)
    np.testing.assert_array_equal(cohort, draw_cohort(sampling, population, round_number, seed_of_round))


@given(st.integers(1, 20), st.integers(20, 60), st.integers(0, 100))
def test_fixed_size_cohorts_have_that_size(size, population, round_number):
    assert len(draw_cohort(FixedSize(size), population, round_number, seed_of_round)) == size


@given(st.integers(1, 20), st.integers(20, 60))
def test_cyclic_cohorts_partition_the_population_and_come_back_in_turn(cohorts, population):
    drawn = [draw_cohort(Cyclic(cohorts), population, r, seed_of_round) for r in range(2 * cohorts)]
    assert sorted(np.concatenate(drawn[:cohorts])) == list(range(population))
    for first, second in zip(drawn[:cohorts], drawn[cohorts:], strict=True):
        np.testing.assert_array_equal(first, second)
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def _worst_deviation(membership: np.ndarray, rate: float) -> float:
    """Largest |z| among the counts of each client, of each round and of pairs of clients in one round."""
    rounds, clients = membership.shape
    by_client = (membership.sum(0) - rounds * rate) / np.sqrt(rounds * rate * (1 - rate))
    by_round = (membership.sum(1) - clients * rate) / np.sqrt(clients * rate * (1 - rate))
    pair = membership[:, 0::2] & membership[:, 1::2]
    joint = rate * rate
    by_pair = (pair.sum(0) - rounds * joint) / np.sqrt(rounds * joint * (1 - joint))
    return float(np.max(np.abs(np.concatenate([by_client, by_round, by_pair]))))


# 2,000 rounds x 40 clients: 2,060 standard normal counts; one beyond 5.5 has probability below 1e-4.
LIMIT = 5.5


def membership(seed) -> np.ndarray:
    drawn = np.zeros((2000, 40), bool)
    for r in range(2000):
        drawn[r, draw_cohort(Poisson(0.3), 40, r, seed)] = True
    return drawn


def test_poisson_cohorts_are_independent_coins():
    assert _worst_deviation(membership(seed_of_round), 0.3) < LIMIT


def test_the_coin_test_rejects_a_key_that_repeats():
    assert _worst_deviation(membership(lambda r: seed_of_round(r % 20)), 0.3) > LIMIT


def test_poisson_cohorts_may_be_empty():
    assert draw_cohort(Poisson(1e-9), 50, 3, seed_of_round).shape == (0,)


@pytest.mark.parametrize(
    ("sampling", "population", "round_number", "message"),
    [
        (FixedSize(6), 5, 0, "cohort size 6 is larger than the population of 5"),
        (Cyclic(6), 5, 0, "6 cyclic cohorts for 5 clients"),
        (Poisson(0.5), 0, 0, "population is 0"),
        (Poisson(0.5), 5, -1, "round is -1"),
        ("poisson", 5, 0, "unknown sampling 'poisson'"),
    ],
)
def test_errors(sampling, population, round_number, message):
    with pytest.raises(ValueError, match=message):
        draw_cohort(sampling, population, round_number, seed_of_round)

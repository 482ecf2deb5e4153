import hashlib
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl import cohorts
from fl.cohorts import CheckIns, draw_cohort
from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson
from tests.oracles import cohorts as oracle


def seed_of_round(round_number: int) -> int:
    return int.from_bytes(hashlib.sha256(b"test %d" % round_number).digest()[:16], "big")


SAMPLINGS = st.one_of(
    st.floats(0.01, 1).map(Poisson),
    st.integers(1, 20).map(FixedSize),
    st.integers(1, 20).map(Cyclic),
    st.builds(CyclicPoisson, st.integers(1, 20), st.floats(0.01, 1)),
    st.builds(CheckIn, st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(1, 9)),
)


@given(SAMPLINGS, st.integers(20, 60), st.integers(0, 100))
def test_cohort_is_sorted_set_that_depends_on_key_and_round_only(sampling, population, round_number):
    cohort = draw_cohort(sampling, population, round_number, seed_of_round)
    assert np.all(np.diff(cohort) > 0)
    assert np.all((0 <= cohort) & (cohort < population))
    # Drawing other rounds in between changes nothing.
    for other in (0, round_number + 1, 7):
        draw_cohort(sampling, population, other, seed_of_round)
    np.testing.assert_array_equal(cohort, draw_cohort(sampling, population, round_number, seed_of_round))


@given(st.integers(1, 20), st.integers(20, 60), st.integers(0, 100))
def test_fixed_size_cohort_has_given_size(size, population, round_number):
    assert len(draw_cohort(FixedSize(size), population, round_number, seed_of_round)) == size


@given(st.integers(1, 20), st.integers(20, 60))
def test_cyclic_cohorts_partition_population_and_repeat_in_turn(cohorts, population):
    cohorts_drawn = [draw_cohort(Cyclic(cohorts), population, r, seed_of_round) for r in range(2 * cohorts)]
    assert sorted(np.concatenate(cohorts_drawn[:cohorts])) == list(range(population))
    for first, second in zip(cohorts_drawn[:cohorts], cohorts_drawn[cohorts:], strict=True):
        np.testing.assert_array_equal(first, second)
    assert max(map(len, cohorts_drawn)) - min(map(len, cohorts_drawn)) <= 1


@given(st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(1, 4), st.integers(20, 60))
def test_check_in_keeps_separation_and_limit_and_fills_cohorts_as_far_as_they_allow(
    size, separation, limit, population
):
    drawing = CheckIns(CheckIn(size, separation, limit), population, seed_of_round)
    rounds: dict[int, list[int]] = {client: [] for client in range(population)}
    for number in range(40):
        free = [
            client
            for client, before in rounds.items()
            if not any(number - earlier < separation for earlier in before) and (limit is None or len(before) < limit)
        ]
        cohort = drawing.cohort(number)
        assert set(cohort) <= set(free) and len(cohort) == min(size, len(free))
        for client in cohort:
            rounds[int(client)].append(number)
    # A resumed run begins in the middle and draws the same cohorts.
    np.testing.assert_array_equal(
        CheckIns(CheckIn(size, separation, limit), population, seed_of_round).cohort(39), cohort
    )
    # So does one that goes back to the beginning.
    assert set(drawing.cohort(0)) == {client for client, numbers in rounds.items() if 0 in numbers}
    np.testing.assert_array_equal(drawing.cohort(39), cohort)


def test_check_in_takes_any_separation_and_no_round_but_those_from_0():
    drawing = CheckIns(CheckIn(2, 2**63 - 1), 5, seed_of_round)
    assert [len(drawing.cohort(number)) for number in range(4)] == [2, 2, 1, 0]
    for number in (-1, 1.5, math.nan):
        with pytest.raises(ValueError, match="round_number must be an integer of at least 0"):
            drawing.cohort(number)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [CyclicPoisson(4, 0.3), Cyclic(4), Poisson(0.3), FixedSize(4)])
def test_no_stream_of_random_numbers_is_used_twice(sampling, monkeypatch):
    make, used = cohorts._make_generator, []

    def record(seed, stream=0):
        used.append((seed, stream))
        return make(seed, stream)

    monkeypatch.setattr(cohorts, "_make_generator", record)
    draw_cohort(sampling, 40, 0, seed_of_round)
    assert len(set(used)) == len(used) > 0


def test_cyclic_poisson_samples_the_cohort_whose_turn_it_is_independently_of_the_partition():
    turns = [set(draw_cohort(Cyclic(4), 400, r, seed_of_round)) for r in range(4)]
    drawn = [draw_cohort(CyclicPoisson(4, 0.3), 400, r, seed_of_round) for r in range(400)]
    assert all(set(cohort) <= turns[number % 4] for number, cohort in enumerate(drawn))
    membership = np.zeros((100, 400), bool)
    for number, cohort in enumerate(drawn):
        membership[number // 4, cohort] = True
    # 800 values, each beyond 5 standard deviations with probability 6e-7: the test fails by chance in 1 of 2,000 runs.
    assert _worst_deviation(membership, 0.3) < 5


def _worst_deviation(membership: np.ndarray, rate: float) -> float:
    """Returns the largest |z| among the counts of each client, of each round and of pairs of clients in one round."""
    rounds, clients = membership.shape
    by_client = (membership.sum(0) - rounds * rate) / np.sqrt(rounds * rate * (1 - rate))
    by_round = (membership.sum(1) - clients * rate) / np.sqrt(clients * rate * (1 - rate))
    pair = membership[:, 0::2] & membership[:, 1::2]
    joint = rate * rate
    by_pair = (pair.sum(0) - rounds * joint) / np.sqrt(rounds * joint * (1 - joint))
    return float(np.max(np.abs(np.concatenate([by_client, by_round, by_pair]))))


# 2,000 rounds and 40 clients give 2,060 standard normal counts; one is beyond 5.5 with a probability below 1e-4.
LIMIT = 5.5


def membership(seed) -> np.ndarray:
    cohorts_drawn = np.zeros((2000, 40), bool)
    for r in range(2000):
        cohorts_drawn[r, draw_cohort(Poisson(0.3), 40, r, seed)] = True
    return cohorts_drawn


def test_poisson_cohorts_include_clients_independently():
    assert _worst_deviation(membership(seed_of_round), 0.3) < LIMIT


def test_independence_check_rejects_repeated_seeds():
    assert _worst_deviation(membership(lambda r: seed_of_round(r % 20)), 0.3) > LIMIT


def fit(draw: Callable[[int], np.ndarray], distribution: oracle.Distribution, rounds: int = 20_000) -> float:
    """Returns the p-value of a chi-square test that the cohorts of `draw` follow `distribution` over all subsets.

    Subsets that are expected less than 10 times are counted together.
    """
    counts = Counter(tuple(draw(r).tolist()) for r in range(rounds))
    assert counts.keys() <= distribution.keys()
    cells: dict[tuple[int, ...] | None, np.ndarray] = {}
    for cohort, probability in distribution.items():
        cell = cohort if probability * rounds >= 10 else None
        cells[cell] = cells.get(cell, np.zeros(2)) + (counts[cohort], float(probability) * rounds)
    # A remainder that is expected less than once in a thousand such tests must not occur at all.
    if (rest := cells.get(None)) is not None and rest[1] < 1e-3:
        assert rest[0] == 0
        del cells[None]
    table = np.array(list(cells.values()))
    return float(stats.chi2.sf(((table[:, 0] - table[:, 1]) ** 2 / table[:, 1]).sum(), max(len(table) - 1, 1)))


POISSON = [(1, 0.3), (2, 0.5), (3, 0.9), (5, 0.2), (6, 0.1), (6, 0.5), (6, 0.51), (6, 1 - 1e-3), (6, 1.0), (4, 1e-9)]
FIXED = [(1, 1), (6, 1), (5, 2), (6, 3), (6, 6)]
FALSE_ALARM = 1e-6  # probability of a false alarm in each of the fifteen tests below


@pytest.mark.parametrize(("population", "rate"), POISSON)
def test_poisson_cohorts_follow_exact_distribution(population, rate):
    distribution = oracle.poisson(rate, population)
    assert fit(lambda r: draw_cohort(Poisson(rate), population, r, seed_of_round), distribution) > FALSE_ALARM


@pytest.mark.parametrize(("population", "size"), FIXED)
def test_fixed_size_cohorts_follow_exact_distribution(population, size):
    distribution = oracle.fixed_size(size, population)
    assert fit(lambda r: draw_cohort(FixedSize(size), population, r, seed_of_round), distribution) > FALSE_ALARM


WRONG: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "rate in place of intensity": lambda g: np.unique(g.integers(6, size=g.poisson(0.3 * 6))),
    "the first client never": lambda g: np.unique(g.integers(1, 6, size=g.poisson(-np.log1p(-0.3) * 6))),
    "the last client never": lambda g: np.unique(g.integers(5, size=g.poisson(-np.log1p(-0.3) * 6))),
    "a fixed number": lambda g: np.sort(g.choice(6, round(0.3 * 6), replace=False)),
    "binomial number with replacement": lambda g: np.unique(g.integers(6, size=g.binomial(6, 0.3))),
    "a gap too long": lambda g: (gaps := np.cumsum(g.geometric(0.3, 6)))[gaps < 6],
    "two clients, one coin": lambda g: np.flatnonzero(np.repeat(g.random(3) < 0.3, 2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_poisson_check_rejects_wrong_sampler(name):
    assert fit(lambda r: WRONG[name](np.random.default_rng(r)), oracle.poisson(0.3, 6)) < FALSE_ALARM / 1e6


def test_fixed_size_check_rejects_favoured_client():
    def draw(r: int) -> np.ndarray:
        order = np.random.default_rng(r).random(6) * [0.9, 1, 1, 1, 1, 1]
        return np.sort(np.argsort(order)[:3])

    assert fit(draw, oracle.fixed_size(3, 6)) < FALSE_ALARM / 1e6


@pytest.fixture
def random_numbers(monkeypatch):
    """How many random numbers each call of NumPy's generator gave."""
    counts: list[int] = []

    class Counting:
        def __init__(self, seed):
            self._generator = np.random.Generator(np.random.Philox(key=seed))

        def __getattr__(self, name):
            def counted(*arguments, **options):
                found = getattr(self._generator, name)(*arguments, **options)
                counts.append(np.size(found))
                return found

            return counted

    monkeypatch.setattr(cohorts, "_make_generator", Counting)
    return counts


@pytest.mark.parametrize(("population", "rate"), [(10**8, 1e-6), (2 * 10**18, 1e-18), (10**6, 1e-9), (10**6, 1e-3)])
def test_poisson_cohorts_of_large_population_follow_distribution_at_cost_of_cohort(population, rate, random_numbers):
    cohorts_drawn = [draw_cohort(Poisson(rate), population, r, seed_of_round) for r in range(2000)]
    # One number for the size and one for each member, now and then one drawn twice: not a coin for each client.
    assert sum(random_numbers) <= 2000 + 1.01 * sum(len(cohort) for cohort in cohorts_drawn)
    # The size is binomial, whose distance from a Poisson distribution is below the rate if that is small.
    size = stats.binom(population, rate) if rate > 1e-12 else stats.poisson(population * rate)
    quantiles = np.unique(size.ppf(np.linspace(0.05, 0.95, 19)))
    expected = np.diff(np.concatenate([[0], size.cdf(quantiles), [1]])) * 2000
    counts = np.bincount(np.searchsorted(quantiles, [len(cohort) for cohort in cohorts_drawn]), minlength=len(expected))
    frequent = expected > 5
    assert counts[~frequent].sum() < 30
    chi_square = ((counts - expected)[frequent] ** 2 / expected[frequent]).sum()
    assert stats.chi2.sf(chi_square, frequent.sum()) > FALSE_ALARM
    # All clients are equally likely, counted by twentieths of the population, which include the first and the last.
    members = np.concatenate(cohorts_drawn)
    if len(members) > 1000:
        counts = np.bincount((members / population * 20).astype(int), minlength=20)
        chi_square = ((counts - len(members) / 20) ** 2 / (len(members) / 20)).sum()
        assert stats.chi2.sf(chi_square, 19) > FALSE_ALARM


def test_fixed_size_cohorts_of_large_population_cost_one_number_per_member(random_numbers):
    for r in range(1000):
        cohort = draw_cohort(FixedSize(1000), 10**9, r, seed_of_round)
        assert len(cohort) == 1000 and np.all(np.diff(cohort) > 0)
    assert random_numbers == [1000] * 1000


def test_poisson_cohort_may_be_empty():
    assert draw_cohort(Poisson(1e-9), 50, 3, seed_of_round).shape == (0,)


@pytest.mark.parametrize(
    ("sampling", "population", "round_number", "message"),
    [
        (FixedSize(6), 5, 0, "cohort size 6 is larger than the population of 5"),
        (Cyclic(6), 5, 0, "6 cyclic cohorts for 5 clients"),
        (Poisson(0.5), 0, 0, "population is 0"),
        (Poisson(0.5), 5, -1, "round_number must be an integer of at least 0, got -1"),
        ("poisson", 5, 0, "unknown sampling 'poisson'"),
    ],
)
def test_draw_cohort_refuses_invalid_arguments(sampling, population, round_number, message):
    with pytest.raises(ValueError, match=message):
        draw_cohort(sampling, population, round_number, seed_of_round)

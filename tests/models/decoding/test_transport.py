"""The optimum equals a linear program and the least cut over all sets; the rules' acceptances keep to their bounds."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from models.decoding.child_drafting import normalized, split
from models.decoding.transport import (
    _many_inside,
    _two_inside,
    greedy_acceptance,
    k_seq_acceptance,
    k_seq_guarantee,
    multi_path_acceptance,
    optimal_acceptance,
    recursive_acceptance,
)
from tests.oracles.distributions import pairs

ACCEPTANCES: tuple[Callable[..., float], ...] = (optimal_acceptance, greedy_acceptance, k_seq_acceptance)
P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])


def independent(p, count):
    """Returns set of drafted tokens → probability, for independent drafts."""
    found: dict[frozenset[int], float] = {}
    for drafts in itertools.product(range(len(p)), repeat=count):
        found[frozenset(drafts)] = found.get(frozenset(drafts), 0.0) + float(np.prod(p[list(drafts)]))
    return found


def distinct(p, count, drawn=frozenset()):
    """The same for drafts without replacement."""
    left = [x for x in range(len(p)) if p[x] > 0 and x not in drawn]
    if not left or len(drawn) == count:
        return {drawn: 1.0}
    found: dict[frozenset[int], float] = {}
    for x in left:
        for drafts, probability in distinct(p, count, drawn | {x}).items():
            found[drafts] = found.get(drafts, 0.0) + probability * p[x] / sum(p[left])
    return found


def greedy(p, count):
    """The same for one random draft and the likeliest tokens."""
    order = sorted(range(len(p)), key=lambda x: (-p[x], x))
    likeliest = order[: count - 1]
    rest = [x for x in range(len(p)) if x not in likeliest and p[x] > 0]
    if not rest:
        return {frozenset(order[:count]): 1.0}
    return {frozenset([x, *likeliest]): p[x] / sum(p[rest]) for x in rest}


def least_cut(law, q):
    """Returns the minimum of q(H) + 1 - Pr(all drafts in H) over all sets H."""
    sets = itertools.chain.from_iterable(itertools.combinations(range(len(q)), n) for n in range(len(q) + 1))
    return min(sum(q[x] for x in chosen) + 1 - sum(w for s, w in law.items() if s <= set(chosen)) for chosen in sets)


def best_plan(law, q):
    """Returns the largest probability that the emitted token is drafted, by linear programming over all verifiers."""
    columns = list(itertools.product(law, range(len(q))))
    rows = [[drafts == other for drafts, _ in columns] for other in law]
    rows += [[token == other for _, token in columns] for other in range(len(q))]
    value = [-float(token in drafts) for drafts, token in columns]
    # The last equality follows from the others, but for rounding.
    found = linprog(
        value,
        A_eq=np.array(rows[:-1], float),
        b_eq=[*law.values(), *q[:-1]],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.success
    return -found.fun


def draw_pairs(number, largest):
    """Draws (p, q, count): flat and peaked ones, some with zeros, equal or disjoint."""
    generator = np.random.default_rng(4)
    for kind in range(number):
        size, count = int(generator.integers(2, largest + 1)), int(generator.integers(1, 6))
        p, q = (generator.dirichlet(np.full(size, generator.choice([0.1, 0.5, 2]))) for _ in range(2))
        if kind % 4 == 1:
            p, q = (x * (np.arange(size) != generator.integers(size)) + 1e-9 * (x == x.max()) for x in (p, q))
        if kind % 8 == 2:
            q = p.copy()
        if kind % 8 == 6:
            p, q = p * (np.arange(size) == 0), q * (np.arange(size) > 0)
        p, q = (x + (x.sum() == 0) for x in (p, q))
        yield p / p.sum(), q / q.sum(), count


@pytest.mark.parametrize(("replacement", "drafting"), [(True, independent), (False, distinct)])
def test_optimal_acceptance_equals_least_cut_over_all_sets(replacement, drafting):
    for p, q, count in draw_pairs(80, 5):
        expected = least_cut(drafting(p, count), q)
        assert optimal_acceptance(p, q, count, replacement=replacement) == pytest.approx(expected, abs=1e-12)


def test_acceptances_equal_linear_program_over_all_verifiers():
    for p, q, count in draw_pairs(24, 4):
        count = min(count, 4)
        found = [optimal_acceptance(p, q, count, replacement=kind) for kind in (True, False)]
        found.append(greedy_acceptance(p, q, count))
        expected = [best_plan(law, q) for law in (independent(p, count), distinct(p, count), greedy(p, count))]
        assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("count", [2, 3])
def test_distinct_drafts_of_a_nearly_certain_drafter_keep_their_digits(count):
    """The drafts after the first are of tokens whose probabilities are 1e-13 and less."""
    p = np.array([1e-13, 1.0, 3e-13, 2e-16, 4e-13])
    q = np.array([0.1, 0.1, 0.3, 0.4, 0.1])
    expected = least_cut(distinct(p / p.sum(), count), q)
    assert optimal_acceptance(p, q, count, replacement=False) == pytest.approx(expected, abs=1e-12)


def test_quadrature_equals_closed_form_for_two_distinct_drafts_of_many_tokens():
    p = np.exp(4 * np.random.default_rng(5).normal(size=2000))
    p /= p.sum()
    np.testing.assert_allclose(_many_inside(p, 2)[:-1], _two_inside(p)[:-1], rtol=0, atol=1e-12)


@given(pair=pairs(5), count=st.integers(1, 6))
@settings(max_examples=150)
def test_acceptances_are_ordered_and_grow_with_the_number_of_drafts(pair, count):
    p, q = pair
    best = optimal_acceptance(p, q, count)
    assert k_seq_guarantee(count) * best - 1e-12 <= k_seq_acceptance(p, q, count) <= best + 1e-12
    assert best <= np.minimum(q, 1 - (1 - p) ** count).sum() + 1e-12
    # Independent drafts are the distinct ones among the first draws, and so fewer.
    assert best <= optimal_acceptance(p, q, count, replacement=False) + 1e-12
    for acceptance in ACCEPTANCES:
        assert acceptance(p, q, count) <= acceptance(p, q, count + 1) + 1e-12
    assert optimal_acceptance(p, q, count, replacement=False) <= (
        optimal_acceptance(p, q, count + 1, replacement=False) + 1e-12
    )


@given(pair=pairs(4))
@settings(max_examples=50)
def test_one_draft_is_accepted_as_often_as_a_maximal_coupling_agrees(pair):
    p, q = pair
    shared = pytest.approx(np.minimum(p, q).sum(), abs=1e-12)
    for acceptance in ACCEPTANCES:
        assert acceptance(p, q, 1) == shared
    assert optimal_acceptance(p, q, 1, replacement=False) == shared


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_equal_distributions_are_always_accepted_and_disjoint_ones_never(count):
    p, q = np.array([0.7, 0.3, 0.0, 0.0]), np.array([0.0, 0.0, 0.5, 0.5])
    for replacement in (True, False):
        assert optimal_acceptance(p, p, count, replacement=replacement) == pytest.approx(1, abs=1e-14)
        assert optimal_acceptance(p, q, count, replacement=replacement) == pytest.approx(0, abs=1e-14)
    assert k_seq_acceptance(p, p, count) == pytest.approx(1, abs=1e-14)
    assert k_seq_acceptance(p, q, count) == pytest.approx(0, abs=1e-14)


def test_more_distinct_drafts_than_tokens_are_all_tokens_of_the_drafter():
    p, q = np.array([0.6, 0.4, 0.0]), np.array([0.2, 0.3, 0.5])
    for count in (2, 3, 9):
        assert optimal_acceptance(p, q, count, replacement=False) == pytest.approx(0.5, abs=1e-14)
    assert optimal_acceptance([0, 1, 0], q, 5, replacement=False) == pytest.approx(0.3, abs=1e-14)


def test_greedy_acceptance_drafts_the_next_likeliest_token_where_the_likeliest_hold_all_mass():
    p, q = np.array([0.6, 0.4, 0.0, 0.0]), np.array([0.2, 0.3, 0.4, 0.1])
    assert greedy_acceptance(p, q, 3) == pytest.approx(0.2 + 0.3 + 0.4)  # the lower id of equals
    assert greedy_acceptance(p, q, 2) == pytest.approx(0.2 + 0.3)
    assert greedy_acceptance([0.5, 0.5, 0], [0.9, 0, 0.1], 2) == pytest.approx(0.9)
    for count in (4, 5, 9):  # all tokens
        assert greedy_acceptance(p, q, count) == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("p", [[1.0, 0, 0, 0], [0.6, 0.4, 0, 0], [0, 0.5, 0, 0.5], [0.1, 0.2, 0.3, 0.4]])
def test_greedy_acceptance_is_that_of_the_children_that_are_drafted(p, count):
    """Also where the drafter's probability outside the certain children is 0."""
    q = np.array([0.2, 0.3, 0.4, 0.1])
    base, certain = split("greedy", tf.constant([p], tf.float64), tf.constant([p], tf.float64), count)
    drawn, likeliest = normalized(base).numpy()[0], certain.numpy()[0]
    others = [token for token in range(4) if token not in likeliest]
    expected = q[likeliest].sum() + np.minimum(q, drawn)[others].sum()
    assert greedy_acceptance(p, q, count) == pytest.approx(expected, abs=1e-12)
    assert drawn[others].sum() == pytest.approx(1)


@given(pair=pairs(5), count=st.integers(1, 5))
@settings(max_examples=60)
def test_rules_accept_at_least_one_draft_and_at_most_the_optimum_for_their_drafts(pair, count):
    p, q = pair
    one = np.minimum(p, q).sum() - 1e-12
    assert one <= multi_path_acceptance(p, q, count) <= optimal_acceptance(p, q, count) + 1e-12
    two = min(count, 2)
    assert one <= recursive_acceptance(p, q, two) <= optimal_acceptance(p, q, two, replacement=False) + 1e-12


def test_recursive_rejection_of_two_distinct_drafts_is_the_sum_over_the_first():
    generator = np.random.default_rng(6)
    for _ in range(40):
        p, q = (generator.dirichlet(np.full(7, generator.choice([0.2, 1]))) for _ in range(2))
        left = np.maximum(q - p, 0) / np.maximum(q - p, 0).sum()
        expected = np.minimum(p, q).sum()
        for token in range(7):
            second = np.where(np.arange(7) == token, 0, p)
            expected += max(p[token] - q[token], 0) * np.minimum(left, second / second.sum()).sum()
        assert recursive_acceptance(p, q, 2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [0, 3, True])
def test_recursive_rejection_of_more_than_two_drafts_is_refused(count):
    with pytest.raises(ValueError, match=f"^num_drafts = {count!r}: must be an integer from 1 to 2$"):
        recursive_acceptance(P, Q, count)


def test_worked_examples_have_their_known_values():
    p, q = [0.4108, 0.5892], [0.2748, 0.7252]
    assert multi_path_acceptance(p, q, 1) == pytest.approx(0.864, abs=5e-4)
    for count in (2, 8):
        assert multi_path_acceptance(p, q, count) == pytest.approx(0.894, abs=5e-4)
    assert optimal_acceptance(P, Q, 3) == pytest.approx(0.888, abs=1e-12)
    assert k_seq_acceptance(P, Q, 3) == pytest.approx(0.789674, abs=5e-7)
    assert optimal_acceptance(P, Q, 1) == pytest.approx(0.6, abs=1e-12)
    uniform, half = np.full(4, 0.25), np.array([0.5, 0.5, 0, 0])
    assert optimal_acceptance(uniform, half, 2) == pytest.approx(0.75, abs=1e-12)
    assert k_seq_acceptance(uniform, half, 2) == pytest.approx(0.75, abs=1e-12)
    assert k_seq_guarantee(2) == pytest.approx(0.75)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 4097])
def test_guarantee_for_no_positive_integer_of_drafts_is_refused(count):
    with pytest.raises(ValueError, match=f"^num_drafts = {count!r}: must be an integer from 1 to 4096$"):
        k_seq_guarantee(count)


@pytest.mark.parametrize(
    ("drafter", "target", "count", "message"),
    [
        (P, Q, 0, "num_drafts = 0: must be an integer from 1 to 4096"),
        (P, Q, True, "num_drafts = True: must be an integer from 1 to 4096"),
        (P, Q, 2.0, "num_drafts = 2.0: must be an integer from 1 to 4096"),
        (P, Q, 10**12, "num_drafts = 1000000000000: must be an integer from 1 to 4096"),
        (P, Q[:2] / 0.4, 1, "drafter has 3 tokens and target 2: must have one vocabulary"),
        ([P, P], Q, 1, r"drafter has shape \(2, 3\): must be one distribution, \[V\]; call once per row"),
        ([], [], 1, "drafter sums to 0: must sum to 1 within 1e-6; divide it by its sum"),
        (P, Q * 1.1, 1, "target sums to 1.1: must sum to 1 within 1e-6; divide it by its sum"),
        (P, [0.5, np.nan, 0.5], 1, r"target\[1\] = nan: must be a probability >= 0; pass the softmax of logits"),
        ([1.5, 0.0, -0.5], Q, 1, r"drafter\[2\] = -0.5: must be a probability >= 0"),
        ([np.inf, 0.0, 0.0], Q, 1, "drafter sums to inf: must sum to 1"),
    ],
)
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_acceptances_refuse_what_is_no_distribution_or_number_of_drafts(acceptance, drafter, target, count, message):
    with pytest.raises(ValueError, match=message):
        acceptance(drafter, target, count)

"""The enumerated rules have the target's joint distribution and known acceptances; faults change the distribution."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, chi2

from models.decoding.couplings import race_agreement
from models.decoding.transport import greedy_acceptance, k_seq_acceptance
from tests.oracles import tree_decoding as oracle

CHILDREN = (oracle.greedy_children, oracle.independent_children, oracle.distinct_children)
SHAPES = ((3, (3,)), (3, (2, 1)), (3, (1, 2)), (2, (2, 2)), (2, (2, 1, 1)), (4, (2, 1)), (2, (1, 1, 1, 1)))
CHAINS = ((2, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 3), (3, 3, 1))
OF_CHAINS: tuple[Callable[..., oracle.Outcome], ...] = (oracle.spectr, oracle.multi_path, oracle.invariant_list)
P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])


def error(outcome, target, depth):
    return np.abs(outcome.law - oracle.joint_law(target, depth)).max()


def tree_error(children, shapes=SHAPES, **hooks):
    """Returns the largest error over three pairs of models for each shape."""
    generator, errors = np.random.default_rng(1), []
    for (size, shape), _ in itertools.product(shapes, range(3)):
        target, drafter = oracle.draw_models(generator, size, len(shape))
        errors.append(error(oracle.tree(target, drafter, shape, children, **hooks), target, len(shape)))
    return max(errors)


def chains_error(rule, **hooks):
    generator, errors = np.random.default_rng(2), []
    for (size, num_drafts, length), _ in itertools.product(CHAINS, range(3)):
        target, drafter = oracle.draw_models(generator, size, length)
        errors.append(error(rule(target, drafter, num_drafts, length, **hooks), target, length))
    return max(errors)


@pytest.mark.parametrize("children", CHILDREN, ids=lambda f: f.__name__)
def test_tree_has_the_joint_distribution_of_the_target(children):
    assert tree_error(children) < 1e-12


@pytest.mark.parametrize("rule", OF_CHAINS, ids=lambda f: f.__name__)
def test_rule_of_chains_has_the_joint_distribution_of_the_target(rule):
    assert chains_error(rule) < 1e-12


def distinct_by_token(p, count):
    """Visits siblings by token id, though each was drafted from what its elder siblings had left."""
    for probability, family in oracle.distinct_children(p, count):
        yield probability, sorted(family, key=lambda child: child[0])


def independent_by_token(p, count):
    for probability, family in oracle.independent_children(p, count):
        yield probability, sorted(family, key=lambda child: child[0])


def certain_as_if_drawn(p, count):
    """Takes the likeliest tokens as drawn from p."""
    for probability, family in oracle.greedy_children(p, count):
        yield probability, [(token, p if law[token] == 1 else law) for token, law in family if p[token] > 0]


@pytest.mark.parametrize(
    "children", [distinct_by_token, independent_by_token, certain_as_if_drawn], ids=lambda f: f.__name__
)
def test_children_with_a_wrong_order_or_distribution_are_found(children):
    assert tree_error(children, shapes=SHAPES[:4]) > 1e-2


def test_a_residual_of_another_node_is_found():
    before = []

    def rejected(weight, law, drafted):
        """Returns the distribution that the call before computed, at another node or for another child."""
        right_weight, right_law = oracle.after_rejection(weight, law, drafted)
        before.append(right_law)
        has_another = len(before) > 1 and len(before[-2]) == len(law)
        return right_weight, before[-2] if has_another else right_law

    assert tree_error(oracle.greedy_children, shapes=SHAPES[:4], rejected=rejected) > 1e-2


def test_a_rho_below_the_root_is_found():
    assert chains_error(oracle.spectr, rho=lambda p, q, count: max(0.98 * oracle.k_seq_rho(p, q, count), 1.0)) > 1e-3


def test_equal_models_are_accepted_to_the_end():
    _, model = oracle.draw_models(np.random.default_rng(3), 3, 2)
    for children in CHILDREN[1:]:
        assert oracle.tree(model, model, (2, 1), children).accepted == pytest.approx(2, abs=1e-12)
    for rule in OF_CHAINS[::2]:
        assert rule(model, model, 2, 2).accepted == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_level_accepts_as_the_closed_forms_say(count):
    target: oracle.Models = {(): Q, (0,): Q, (1,): Q, (2,): Q}
    drafter: oracle.Models = {(): P}
    greedy = oracle.tree(target, drafter, (count,), oracle.greedy_children)
    assert greedy.accepted == pytest.approx(greedy_acceptance(P, Q, count), abs=1e-12)
    found = oracle.spectr(target, drafter, count, 1)
    assert found.accepted == pytest.approx(k_seq_acceptance(P, Q, count), abs=1e-12)
    # Tokens are in ascending order of Q / P: the selected draft is the largest of `count`.
    selected = np.diff(np.cumsum(P) ** count, prepend=0)
    found = oracle.multi_path(target, drafter, count, 1)
    assert found.accepted == pytest.approx(np.minimum(selected, Q).sum(), abs=1e-12)


def test_one_chain_accepts_as_block_verification_or_as_the_race():
    """The toy models of Sun et al. 2024: blocks of 2, 3 and 4 tokens accept 11/9, 15/9 and 18.444/9."""
    prefixes = [prefix for length in range(5) for prefix in itertools.product(range(2), repeat=length)]
    target, drafter = ({prefix: np.array(law) / 3 for prefix in prefixes} for law in ([1, 2], [2, 1]))
    for length, expected in ((2, 11 / 9), (3, 15 / 9), (4, 166 / 81)):
        for children in CHILDREN:
            found = oracle.tree(target, drafter, (1,) * length, children).accepted
            assert found == pytest.approx(expected, abs=1e-12)
        assert oracle.multi_path(target, drafter, 1, length).accepted == pytest.approx(expected, abs=1e-12)
    race = race_agreement(P, Q)
    following = {prefix: Q for length in range(3) for prefix in itertools.product(range(3), repeat=length)}
    found = oracle.invariant_list(following, dict.fromkeys(following, P), 1, 2).accepted
    assert found == pytest.approx(race + race**2, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_survivors_of_the_list_rule_have_the_distribution_of_sampled_races(count):
    """Pearson's test over 100,000 races; a true distribution fails with probability 1e-5 (fixed seed)."""
    draws = 100_000
    noise = np.random.default_rng(4).exponential(size=(draws, count, 3))
    drafts, token = np.argmin(noise / P, axis=2), np.argmin((noise / Q).min(axis=1), axis=1)
    counts = np.zeros((3, count + 1))
    np.add.at(counts, (token, np.sum(drafts == token[:, np.newaxis], axis=1)), 1)

    def statistic(law):
        likely = law > 1e-12
        assert not counts[~likely].any()
        return np.sum((counts[likely] - draws * law[likely]) ** 2 / (draws * law[likely]))

    law = oracle.survivors(P, Q, count)
    largest = chi2.ppf(1 - 1e-5, law.size - 1)
    assert statistic(law) < largest
    # Planted: drafts that equal the token as often, but independently of each other.
    rates = law @ np.arange(count + 1) / (count * Q)
    independent = Q[:, np.newaxis] * binom.pmf(np.arange(count + 1), count, rates[:, np.newaxis])
    assert statistic(np.where(law > 1e-12, independent, 0)) > largest

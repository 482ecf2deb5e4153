"""Multi-path block verification is lossless and accepts what the plain enumeration says; planted bugs show in it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import multi_path
from models.decoding.enumeration import joint_law
from models.decoding.multi_path import MultiPath, best_num_drafts
from models.decoding.tree_enumeration import enumerate_tree
from models.decoding.tree_rules import Drafts
from models.decoding.verification import block_rule
from models.token_tree import TokenTree
from tests.oracles import tree_decoding as oracle
from tests.tolerance import rounding

RULE = MultiPath()
CASES = ((3, 1, 2), (4, 3, 1), (3, 3, 2), (3, 2, 3), (2, 3, 3))  # tokens, chains, length
SEEDS = (2, 4, 8)  # of models in which what happens after the first token of a chain matters
P, Q = np.array([0.4108, 0.5892]), np.array([0.2748, 0.7252])


def fix_count(patch, count):
    """Makes the rule look at `count` chains in every row, whatever the distributions."""
    patch.setattr(multi_path, "best_num_drafts", lambda drafter, target, most: tf.fill([target.shape[0]], count))


def best_count(drafter, target, most):
    """Returns the smallest number of chains with the largest acceptance of one token, in NumPy."""
    order = np.argsort(np.where(drafter > 0, target / np.where(drafter > 0, drafter, 1), np.inf), kind="stable")
    sums = np.cumsum(drafter[order])
    accepted = [np.minimum(np.diff(sums**count, prepend=0), target[order]).sum() for count in range(1, most + 1)]
    return 1 + int(np.argmax(np.array(accepted) > max(accepted) - 1e-12))


def enumerate_rule(target, drafter, size, chains, length, dtype=np.float64):
    return enumerate_tree(RULE, target, drafter, size, TokenTree.chains(chains, length), dtype=dtype)


def error(size, chains, length, seed, dtype=np.float64, passes=False):
    """Returns the largest error of a probability on one pair of models with zeros.

    Args:
      passes: whether the drafter proposes nothing after every text that ends with token 1.
    """
    target, drafter = oracle.draw_models(np.random.default_rng(seed), size, length)
    if passes:
        drafter = {text: law * (text[-1:] != (1,)) for text, law in drafter.items()}
    found = enumerate_rule(target, drafter, size, chains, length, dtype)
    return np.abs(found.law - joint_law(target, size, length + 1)).max()


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize(("size", "chains", "length"), CASES)
def test_output_has_the_joint_distribution_of_the_target(size, chains, length, passes):
    for seed in SEEDS[:2]:
        assert error(size, chains, length, seed, passes=passes) < 1e-12
    assert error(size, chains, length, SEEDS[0], np.float32, passes) < 1e-6


@pytest.mark.parametrize(("size", "chains", "length", "count"), [(3, 3, 2, 3), (3, 3, 2, 2), (2, 3, 3, 3)])
def test_output_has_the_joint_distribution_of_the_target_whatever_number_of_chains_counts(
    size, chains, length, count, monkeypatch
):
    fix_count(monkeypatch, count)
    for seed, passes in itertools.product(SEEDS, (False, True)):
        assert error(size, chains, length, seed, passes=passes) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("size", "chains", "length"), [*CASES, (2, 8, 1), (4, 2, 2), (2, 2, 4)])
def test_output_has_the_joint_distribution_of_the_target_on_many_models(size, chains, length):
    for seed, passes in itertools.product(range(10, 20), (False, True)):
        assert error(size, chains, length, seed, passes=passes) < 1e-12
        assert error(size, chains, length, seed, np.float32, passes) < 1e-6


@pytest.mark.parametrize(("size", "chains", "length"), CASES)
def test_accepted_tokens_are_those_of_the_plain_enumeration(size, chains, length, monkeypatch):
    models = oracle.draw_models(np.random.default_rng(SEEDS[0]), size, length)
    count = best_count(models[1][()], models[0][()], chains)
    found = enumerate_rule(*models, size, chains, length).accepted[0]
    assert found == pytest.approx(oracle.multi_path(*models, count, length).accepted, abs=1e-12)
    fix_count(monkeypatch, chains)
    found = enumerate_rule(*models, size, chains, length).accepted[0]
    assert found == pytest.approx(oracle.multi_path(*models, chains, length).accepted, abs=1e-12)


def draw_drafts(rows, size, tree):
    generator = np.random.default_rng(4)
    target, base = (generator.dirichlet(np.full(size, 0.5), (rows, len(tree))) for _ in range(2))
    tokens = generator.integers(0, size, (rows, len(tree))).astype(np.int32)
    return target, base[:, : tree.levels[-1].start], tokens


def test_a_chain_is_decided_as_block_verification_decides_it():
    tree = TokenTree.chain(4)
    target, base, tokens = draw_drafts(50, 6, tree)
    drafts = Drafts(tf.constant(tokens), tf.ones([50, 5], tf.bool), tf.constant(base))
    found, _ = RULE.stops(tf.constant(target), drafts, tree)
    expected = block_rule(tf.constant(target), drafts.base, drafts.tokens[:, 1:], tf.fill([50], 4))
    np.testing.assert_allclose(found, expected.probability, rtol=0, atol=1e-12)


def test_probabilities_are_above_zero_on_the_last_chain_in_order_only():
    tree, size = TokenTree.chains(4, 2), 3
    target, base, tokens = draw_drafts(60, size, tree)
    # Nodes with equal texts have equal distributions.
    numbers = np.concatenate([np.zeros([60, 1], int), 1 + tokens[:, 1:5]], axis=1)
    base = np.take_along_axis(base, numbers[..., np.newaxis], axis=1)
    inner = np.take_along_axis(target, numbers[..., np.newaxis], axis=1)
    target = np.concatenate([inner, target[:, 5:]], axis=1)
    drafts = Drafts(tf.constant(tokens), tf.ones(tokens.shape, tf.bool), tf.constant(base))
    found, _ = RULE.stops(tf.constant(target), drafts, tree)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=0, atol=1e-12)
    counts = [best_count(base[row, 0], target[row, 0], 4) for row in range(60)]
    assert set(counts) == {1, 2, 3, 4}
    for row, count in enumerate(counts):
        ratio = target[row, :5] / base[row]
        keys = [
            (ratio[0, tokens[row, 1 + k]], tokens[row, 1 + k], ratio[1 + k, tokens[row, 5 + k]], tokens[row, 5 + k])
            for k in range(count)
        ]
        last = keys.index(max(keys))
        assert set(np.flatnonzero(found[row])) <= {0, 1 + keys.index(max(keys)), 5 + last}


@pytest.mark.numerical
def test_sums_before_each_of_many_tokens_keep_their_digits_in_float32():
    """A sum has 4,096 roundings, one for each block, and 64 within its block; a sum in one step has up to 262,144."""
    values = np.random.default_rng(5).exponential(size=(2, 1 << 18))
    values = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    exact = np.cumsum(values, axis=1, dtype=np.float64) - values
    assert np.abs(multi_path._sums_before(tf.constant(values)) - exact).max() < rounding(4096 + 64, 1.0)


def test_two_of_eight_chains_count_where_all_would_accept_less_than_one(monkeypatch):
    models: tuple[oracle.Models, oracle.Models] = ({(): Q, (0,): Q, (1,): Q}, {(): P, (0,): P, (1,): P})

    def accepted():
        return [enumerate_rule(*models, 2, chains, 1).accepted[0] for chains in (1, 2, 8)]

    assert accepted() == pytest.approx([0.864, 0.894, 0.894], abs=5e-4)
    tree, tokens = TokenTree.chains(8, 1), np.random.default_rng(8).integers(0, 2, (50, 9)).astype(np.int32)
    base, target = (tf.constant(np.tile(law, (50, nodes, 1))) for law, nodes in ((P, 1), (Q, 9)))
    found, state = RULE.stops(target, Drafts(tf.constant(tokens), tf.ones([50, 9], tf.bool), base), tree)
    assert np.all(np.equal(state[-1], 2))
    assert np.all(np.max(found[:, 1:3], axis=0) > 0) and np.all(np.equal(found[:, 3:], 0))
    for chains in (1, 2, 8):
        fix_count(monkeypatch, chains)
        assert enumerate_rule(*models, 2, 8, 1).accepted[0] == pytest.approx(
            {1: 0.864, 2: 0.894, 8: 0.726}[chains], abs=5e-4
        )


def test_best_number_of_chains_is_that_of_the_largest_acceptance():
    generator = np.random.default_rng(6)
    p, q = (generator.dirichlet(np.full(4, 0.7), 40) for _ in range(2))
    q[0] = p[0]
    found = best_num_drafts(tf.constant(p), tf.constant(q), 5).numpy()
    assert found.tolist() == [best_count(*pair, 5) for pair in zip(p, q, strict=True)]
    assert found[0] == 1 and len(set(found.tolist())) == 5
    assert best_num_drafts(tf.constant(P[np.newaxis]), tf.constant(Q[np.newaxis]), 8).numpy().tolist() == [2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_best_number_of_chains_is_the_smallest_where_more_accept_as_often(dtype):
    """Chains of a certain token are all alike, and of disjoint distributions none is ever accepted."""
    p, q = np.array([[1, 0], [0, 1], [1, 0]], dtype), np.array([[0.3, 0.7], [0.3, 0.7], [0, 1]], dtype)
    assert best_num_drafts(tf.constant(p), tf.constant(q), 8).numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("most", [0, 2.5, True, "2"])
def test_best_number_of_chains_of_no_positive_integer_is_rejected(most):
    with pytest.raises(ValueError, match=f"^most = {most!r}: must be an integer >= 1$"):
        best_num_drafts(tf.constant(P[np.newaxis]), tf.constant(Q[np.newaxis]), most)


def drafter_in_place_of_selected(patch):
    patch.setattr(multi_path, "_selected", lambda drafter, *_: drafter)


def one_chain_too_few(patch):
    selected = multi_path._selected
    patch.setattr(
        multi_path, "_selected", lambda p, before, alpha, count, most: selected(p, before, alpha, count - 1, most)
    )


def order_begins_anew_at_each_node(patch):
    """The chains before the text are forgotten."""
    selected = multi_path._selected
    patch.setattr(multi_path, "_selected", lambda p, before, alpha, *counts: selected(p, before, 0 * alpha, *counts))


def sums_by_token(patch):
    """The sums are by token id, the selection is by q / p."""
    order = multi_path._order

    def wrong(drafter, target):
        return order(drafter, target)[0], tf.cumsum(drafter, axis=1, exclusive=True)

    patch.setattr(multi_path, "_order", wrong)


def residual_of_the_root(patch):
    residual = MultiPath.residual

    def wrong(self, target, base, tokens, is_real, at):
        return residual(self, target, base, tokens, is_real, (at[0], at[1], tf.zeros_like(at[2]), at[3]))

    patch.setattr(MultiPath, "residual", wrong)


def residual_of_all_chains(patch):
    residual = MultiPath.residual

    def wrong(self, target, base, tokens, is_real, at):
        return residual(self, target, base, tokens, is_real, (*at[:3], tf.fill(at[3].shape, tokens.shape[1])))

    patch.setattr(MultiPath, "residual", wrong)


def count_by_the_drafts(patch):
    """How many chains count depends on what was drafted."""
    stops = MultiPath.stops

    def wrong(self, target, drafts, tree):
        count = 1 + tf.cast(tf.equal(drafts.tokens[:, 1], 0), tf.int32)
        patch.setattr(multi_path, "best_num_drafts", lambda *_: count)
        return stops(self, target, drafts, tree)

    patch.setattr(MultiPath, "stops", wrong)


BUGS = [
    (drafter_in_place_of_selected, 3, 2, 1, 2),
    (one_chain_too_few, 3, 2, 1, 2),
    (order_begins_anew_at_each_node, 3, 2, 2, 2),
    (sums_by_token, 3, 2, 1, 2),
    (residual_of_the_root, 3, 2, 2, 2),
    (residual_of_all_chains, 3, 3, 1, 2),
    (count_by_the_drafts, 3, 2, 1, 2),
]


@pytest.mark.parametrize(("bug", "size", "chains", "length", "count"), BUGS, ids=[bug[0].__name__ for bug in BUGS])
def test_enumeration_shows_a_planted_bug(bug, size, chains, length, count, monkeypatch):
    """`count` is the number of chains that counts."""
    fix_count(monkeypatch, count)
    bug(monkeypatch)
    assert max(error(size, chains, length, seed) for seed in SEEDS) > 1e-3

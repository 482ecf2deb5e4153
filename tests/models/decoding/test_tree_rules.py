"""Rules for trees of drafts are lossless and accept what theory says; planted bugs show in the same enumeration."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import k_seq, traversal
from models.decoding.enumeration import Chain, joint_law
from models.decoding.multi_path import MultiPath
from models.decoding.prng import block_words
from models.decoding.spectr import SpecTr
from models.decoding.transport import (
    greedy_acceptance,
    k_seq_acceptance,
    multi_path_acceptance,
    recursive_acceptance,
)
from models.decoding.traversal import Traversal
from models.decoding.tree_enumeration import _draft, enumerate_tree
from models.decoding.tree_rules import Drafts, TreeRule, verify_tree
from models.decoding.verification import block_rule
from models.token_tree import TokenTree
from tests.oracles import tree_decoding as oracle
from tests.oracles.backends import convert

GREEDY, INDEPENDENT, DISTINCT = (Traversal(name) for name in ("greedy", "independent", "without-replacement"))
RULES: dict[str, Any] = {"tree": GREEDY, "independent": INDEPENDENT, "distinct": DISTINCT, "spectr": SpecTr()}
CHILDREN = {
    "tree": oracle.greedy_children,
    "independent": oracle.independent_children,
    "distinct": oracle.distinct_children,
}
SHAPES = {
    "tree": ((4, (3,)), (3, (2, 1)), (3, (1, 2)), (2, (2, 2)), (2, (2, 1, 1, 1))),
    "independent": ((3, (3,)), (3, (1, 2)), (2, (2, 2)), (2, (2, 1, 1, 1))),
    "distinct": ((4, (3,)), (3, (2, 1)), (2, (2, 2)), (2, (3, 1, 1, 1))),
    "spectr": ((3, (3,)), (3, (2, 1)), (2, (2, 1, 1)), (2, (2, 1, 1, 1))),
}
# Too large for the plain enumeration.
LARGE_SHAPES = {
    "tree": ((3, (3, 1, 1, 1)), (2, (2, 2, 1))),
    "distinct": ((3, (2, 1, 1)),),
    "spectr": ((2, (3, 1, 1, 1)),),
}
CASES, LARGE = (
    [
        pytest.param(name, size, shape, id=f"{name}-{size}-{'x'.join(map(str, shape))}")
        for name, shapes in by_name.items()
        for size, shape in shapes
    ]
    for by_name in (SHAPES, LARGE_SHAPES)
)


def draw_models(seed, size, depth, zeros=True):
    target, drafter = oracle.draw_models(np.random.default_rng(seed), size, depth)
    if not zeros:
        target, drafter = (
            {text: (law + 0.1) / (1 + 0.1 * size) for text, law in table.items()} for table in (target, drafter)
        )
    return target, drafter


def error(rule, size, shape, seed=0, dtype=np.float64, passes=False):
    """Returns the largest error of a probability on one pair of models with zeros.

    Args:
      passes: whether the drafter proposes nothing after every text that ends with token 1.
    """
    target, drafter = draw_models(seed, size, len(shape))
    if passes:
        drafter = {text: law * (text[-1:] != (1,)) for text, law in drafter.items()}
    found = enumerate_tree(rule, target, drafter, size, TokenTree.from_shape(shape), dtype=dtype)
    return np.abs(found.law - joint_law(target, size, len(shape) + 1)).max()


@pytest.mark.parametrize(("name", "size", "shape"), [*CASES, *LARGE])
def test_output_has_the_joint_distribution_of_the_target(name, size, shape):
    assert error(RULES[name], size, shape) < 1e-12


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [("tree", 3, (2, 1)), ("independent", 2, (2, 2)), ("distinct", 3, (2, 1)), ("spectr", 3, (2, 1))],
)
def test_output_has_the_joint_distribution_of_the_target_where_the_drafter_proposes_nothing(name, size, shape):
    for seed in range(2):
        assert error(RULES[name], size, shape, seed, passes=True) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "shape"), [*CASES, *LARGE])
def test_output_has_the_joint_distribution_of_the_target_on_many_models(name, size, shape):
    for seed, passes in itertools.product(range(1, 10), (False, True)):
        assert error(RULES[name], size, shape, seed, passes=passes) < 1e-12
        assert error(RULES[name], size, shape, seed, np.float32, passes) < 1e-6


@pytest.mark.parametrize(
    ("name", "size", "shape"), [("tree", 3, (2, 1)), ("distinct", 3, (2, 1)), ("spectr", 2, (2, 1, 1))]
)
def test_output_in_float32_errs_by_rounding_only(name, size, shape):
    assert error(RULES[name], size, shape, dtype=np.float32) < 1e-6


@pytest.mark.parametrize(("name", "size", "shape"), CASES)
def test_accepted_tokens_are_those_of_the_plain_enumeration(name, size, shape):
    target, drafter = draw_models(5, size, len(shape), zeros=False)
    found = enumerate_tree(RULES[name], target, drafter, size, TokenTree.from_shape(shape))
    if name == "spectr":
        expected = oracle.spectr(target, drafter, shape[0], len(shape))
    else:
        expected = oracle.tree(target, drafter, shape, CHILDREN[name])
    assert found.accepted[0] == pytest.approx(expected.accepted, abs=1e-12)


def test_acceptance_of_one_level_is_the_known_one():
    for seed in range(3):
        target, drafter = draw_models(seed, 5, 1, zeros=False)
        tree = TokenTree.from_shape((3,))
        for rule, acceptance in ((GREEDY, greedy_acceptance), (RULES["spectr"], k_seq_acceptance)):
            found = enumerate_tree(rule, target, drafter, 5, tree).accepted[0]
            assert found == pytest.approx(acceptance(drafter[()], target[()], 3), abs=1e-9)


def first_acceptance(rule, target, drafter, size, shape):
    """Returns the probability of accepting a token, over all drafts."""
    tree = TokenTree.from_shape(shape)
    chain = Chain(target, drafter, size)
    tokens, weight, nodes, is_real, base = _draft(rule.drafting, chain, size, tree)
    drafts = Drafts(tf.constant(tokens), tf.constant(is_real), tf.constant(base))
    stops, _ = rule.stops(tf.constant(chain.target[nodes]), drafts, tree)
    return float(np.sum(weight * (1 - stops[:, 0].numpy())))


@pytest.mark.parametrize(
    ("rule", "acceptance", "size", "shape"),
    [
        (GREEDY, greedy_acceptance, 3, (2, 2)),
        (GREEDY, greedy_acceptance, 4, (3, 1)),
        (DISTINCT, recursive_acceptance, 3, (2, 1)),
        (DISTINCT, recursive_acceptance, 6, (2,)),
        (MultiPath(), multi_path_acceptance, 3, (3, 1)),
        (SpecTr(), k_seq_acceptance, 3, (2, 1)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_first_tokens_of_a_tree_of_any_depth_are_accepted_as_those_of_one_level(rule, acceptance, size, shape):
    for seed in range(4):
        target, drafter = draw_models(seed, size, len(shape))
        found = first_acceptance(rule, target, drafter, size, shape)
        assert found == pytest.approx(acceptance(drafter[()], target[()], shape[0]), abs=1e-9)
    assert rule.is_best == (rule is GREEDY)


class Fixed(TreeRule):
    """Stops at each node with a given probability; the token after node n is n."""

    drafting = "independent"

    def __init__(self, probability):
        self.probability = tf.constant([probability])

    def stops(self, target, drafts, tree):
        return self.probability, ()

    def residual(self, target, base, tokens, is_real, at):
        return target


@pytest.mark.parametrize(
    ("probability", "number", "expected"),
    [
        ([0.25, 0.25, 0.5], 0.2, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),  # a number u counts as below x if u < x
        ([0.25, 0.25, 0.5], 0.6, 2),
        ([0.25, 0.25, 0.0], 0.75, 1),  # probabilities that do not sum to 1, by rounding
        ([0.5, 0.0, 0.5], 0.5, 2),  # no node without probability
    ],
)
def test_node_is_the_one_whose_share_of_the_probabilities_holds_the_random_number(probability, number, expected):
    word = tf.constant([int(number * 2**32) - (2**32 if number >= 0.5 else 0)], tf.int32)
    drafts = Drafts(tf.zeros([1, 3], tf.int32), tf.ones([1, 3], tf.bool), tf.fill([1, 1, 3], 1 / 3))
    found = verify_tree(Fixed(probability), tf.eye(3)[tf.newaxis], drafts, TokenTree((-1, 0, 0)), word, (word, word))
    assert (found.node[0], found.token[0]) == (expected, expected)


def draw_drafts(seed, rows, size, tree):
    """Returns random target's probabilities and drafts of a tree, drawn from nothing in particular."""
    generator = np.random.default_rng(seed)
    inner = sum(len(below) > 0 for below in tree.children)
    target = generator.dirichlet(np.full(size, 0.5), (rows, len(tree)))
    base = generator.dirichlet(np.full(size, 0.5), (rows, inner))
    tokens = generator.integers(0, size, (rows, len(tree))).astype(np.int32)
    return target, base, tokens, generator.random((rows, len(tree))) < 0.9


@pytest.mark.parametrize("rule", [GREEDY, INDEPENDENT, DISTINCT], ids=lambda rule: rule.drafting)
def test_a_chain_is_decided_as_block_verification_decides_it(rule):
    tree = TokenTree.chain(4)
    target, base, tokens, _ = draw_drafts(0, 50, 6, tree)
    drafts = Drafts(tf.constant(tokens), tf.ones([50, 5], tf.bool), tf.constant(base))
    found, _ = rule.stops(tf.constant(target), drafts, tree)
    expected = block_rule(tf.constant(target), drafts.base, drafts.tokens[:, 1:], tf.fill([50], 4))
    np.testing.assert_allclose(found, expected.probability, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_probabilities_of_nodes_sum_to_one_and_are_zero_where_nothing_was_drafted(name):
    tree = TokenTree.from_shape((3, 1, 1) if name == "spectr" else (2, 2, 1))
    target, base, tokens, is_real = draw_drafts(1, 40, 5, tree)
    is_real = np.all(is_real[:, tree.paths], axis=2)  # nothing follows a missing node
    is_real[:, 0] = True
    drafts = Drafts(tf.constant(tokens), tf.constant(is_real), tf.constant(base))
    found, _ = RULES[name].stops(tf.constant(target), drafts, tree)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, atol=1e-12)
    assert np.all(found.numpy()[~is_real] == 0) and np.all(found >= 0)


def test_spectr_draws_nodes_with_the_probabilities_of_all_nodes():
    """Each node belongs to few intervals of the random number, so that a grid of it shows the probabilities."""
    points, tree = 1 << 11, TokenTree.from_shape((3, 1, 1))
    target, base, tokens, is_real = draw_drafts(5, 6, 3, tree)
    is_real = np.all(is_real[:, tree.paths], axis=2)
    is_real[:, 0] = True
    uniform = (np.arange(points, dtype=np.float32) + 0.5) / points
    for row in range(len(tokens)):
        one = [tf.constant(part[row : row + 1]) for part in (target, tokens, is_real, base)]
        stops, counts = RULES["spectr"].stops(one[0], Drafts(*one[1:]), tree)
        many = [tf.repeat(part, points, axis=0) for part in one]
        node, count = RULES["spectr"].draw(many[0], Drafts(*many[1:]), tree, tf.constant(uniform))
        found = np.bincount(node.numpy(), minlength=len(tree)) / points
        np.testing.assert_allclose(found, stops[0], atol=8 / points)
        np.testing.assert_array_equal(count, counts.numpy()[0][node.numpy()])


@pytest.mark.parametrize("name", ["tree", "spectr"])
def test_tflite_draws_the_nodes_and_tokens_of_eager_mode(name):
    rule, tree = RULES[name], TokenTree.from_shape((3, 1))
    target, base, tokens, _ = draw_drafts(2, 64, 9, tree)

    def decide(target, base, tokens):
        words = block_words([3, 4], tf.range(64), tf.zeros([64], tf.int32), len(tree) - 1)
        drafts = Drafts(tokens, tf.ones([64, len(tree)], tf.bool), base)
        return verify_tree(rule, target, drafts, tree, words.accept, words.residual)._asdict()

    inputs = {"target": target.astype(np.float32), "base": base.astype(np.float32), "tokens": tokens}
    specs = {key: tf.TensorSpec(value.shape, value.dtype, key) for key, value in inputs.items()}
    expected, found = (
        decide(**{key: tf.constant(value) for key, value in inputs.items()}),
        convert(decide, specs)(**inputs),
    )
    assert len(set(found["node"].tolist())) > 2
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key])


def too_small_rho(patch):
    solve = k_seq.solve

    def smaller(drafter, target, count, most):
        root = solve(drafter, target, count, most)
        rho = tf.maximum(0.9 * root.rho, 1.0)
        beta = tf.reduce_sum(tf.minimum(drafter, target / rho[:, tf.newaxis]), axis=1)
        return k_seq.Root(rho, beta, (1 - (1 - beta) ** tf.cast(count, beta.dtype)) / beta)

    patch.setattr(k_seq, "solve", smaller)


def drafts_not_counted_anew(patch):
    """The residual after an accepted token is that of all drafts."""

    def residual(self, target, base, tokens, is_real, at):
        return k_seq.choose(base, target, tokens, tf.ones_like(tokens, tf.bool)).residual

    patch.setattr(SpecTr, "residual", residual)


def siblings_by_token(patch):
    """Siblings are visited by token id instead of drafting order."""
    reject = Traversal._reject

    def sorted_first(self, target, base, tokens, is_real, weight):
        return reject(self, target, base, tf.sort(tokens, axis=-1), is_real, weight)

    patch.setattr(Traversal, "_reject", sorted_first)


def certain_child_as_drawn(patch):
    """Certain children count as drawn from all tokens alike."""

    def law(drafting, base, tokens, place):
        return tf.ones_like(base) / base.shape[-1] if place else base

    patch.setattr(traversal, "child_law", law)


def residual_of_the_root(patch):
    """The token after a node is drawn with the root's weight."""
    residual = Traversal.residual

    def wrong(self, target, base, tokens, is_real, at):
        return residual(self, target, base, tokens, is_real, tf.ones_like(at))

    patch.setattr(Traversal, "residual", wrong)


BUGS = [
    (too_small_rho, "spectr", 3, (3,)),
    (drafts_not_counted_anew, "spectr", 3, (2, 1)),
    (siblings_by_token, "distinct", 4, (3,)),
    (certain_child_as_drawn, "tree", 4, (3,)),
    (residual_of_the_root, "tree", 3, (2, 1)),
]


@pytest.mark.parametrize(("bug", "name", "size", "shape"), BUGS, ids=[bug[0].__name__ for bug in BUGS])
def test_enumeration_shows_a_planted_bug(bug, name, size, shape, monkeypatch):
    bug(monkeypatch)
    assert max(error(RULES[name], size, shape, seed) for seed in range(3)) > 1e-4


@pytest.mark.parametrize("drafting", ["greedily", "", None, ["greedy"]])
def test_drafting_of_another_name_is_refused(drafting):
    with pytest.raises(ValueError, match="^drafting = .*: must be one of greedy, independent, without-replacement$"):
        Traversal(drafting)


def test_spectr_never_draws_a_node_that_was_not_drafted():
    """At the largest random number, whatever rounding does."""
    is_real = tf.constant([[True, False, True, False, False]])
    drafts = Drafts(tf.constant([[0, 1, 2, 3, 0]]), is_real, tf.fill([1, 1, 4], 0.25))
    target = tf.constant([[[0.1, 0.2, 0.3, 0.4]] * 5])
    node, _ = SpecTr().draw(target, drafts, TokenTree.chains(4, 1), tf.constant([1 - 2.0**-24]))
    assert int(node[0]) == 2

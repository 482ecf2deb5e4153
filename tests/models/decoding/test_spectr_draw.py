"""SpecTr's `draw`, integrated exactly over its random number: its output has the target's distribution.

The plain recursion of this module divides [0, 1) into the intervals of all sequences of decisions. `draw` is called at
the middle of each and just inside its two ends. Decisions never fall back in order as the number grows, so that a
sequence which is the same at both ends is the same between them.
"""

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.enumeration import joint_law
from models.decoding.spectr import SpecTr
from models.decoding.tree_rules import Drafts, residual_at
from models.token_tree import TokenTree
from tests.oracles import tree_decoding as oracle

CASES = [(3, 2, 2), (2, 3, 2), (2, 2, 3), (4, 3, 1), (3, 1, 3)]  # V, K, G; in models 3 and 4 all depths decide
# Distance from the ends of an interval, above the rounding of its ends. Narrow ones are tried in the middle only.
_INSIDE = {np.float64: 2.0**-38, np.float32: 2.0**-20}


def decisions(target, drafter, drafts, passes):
    """Yields the interval of each sequence of decisions, and the text that it accepts.

    Args:
      passes: whether the drafter proposes nothing after each text that ends with token 1.
    """

    def follow(prefix, alive, begin, end):
        place = len(prefix)
        if place == len(drafts[0]) or (passes and prefix[-1:] == (1,)):
            yield begin, end, prefix
            return
        p, q = drafter[prefix], target[prefix]
        rho = oracle.k_seq_rho(p, q, len(alive))
        accept = [min(1.0, q[draft[place]] / (rho * p[draft[place]])) for draft in alive]
        width = (end - begin) * float(np.prod([1 - chance for chance in accept]))
        yield begin, begin + width, prefix
        begin, passed = begin + width, end - begin
        for draft, chance in zip(alive, accept, strict=True):
            width = passed * chance
            token = draft[place]
            yield from follow((*prefix, token), [one for one in alive if one[place] == token], begin, begin + width)
            begin, passed = begin + width, passed - width

    return follow((), list(drafts), 0.0, 1.0)


def integrate(size, num_drafts, length, seed=3, dtype=np.float64, passes=False):
    """Returns the largest error of a probability of the output, and of how many numbers the accepted text is wrong."""
    target, drafter = oracle.draw_models(np.random.default_rng(seed), size, length)
    tree = TokenTree.chains(num_drafts, length)
    rows, texts = [], []
    for drawn, drafts in oracle.chains(drafter, num_drafts, length):
        for begin, end, text in decisions(target, drafter, drafts, passes):
            inside = _INSIDE[dtype]
            is_wide = end - begin > 4 * inside
            rows.append((drafts, (begin + end) / 2, drawn * (end - begin)))
            rows += [(drafts, number, 0.0) for number in (begin + inside, end - inside) if is_wide]
            texts += [text] * 3 if is_wide else [None]
    tokens = np.array([[0, *(draft[place] for place in range(length) for draft in drafts)] for drafts, _, _ in rows])
    paths = [tree.paths[node, 1 : tree.depths[node] + 1] for node in range(len(tree))]
    before = [[tuple(row[path].tolist()) for path in paths] for row in tokens]
    inner = len(tree) - num_drafts
    is_real = [[not (passes and 1 in text[:-1]) for text in row] for row in before]
    given = Drafts(
        tf.constant(tokens, tf.int32),
        tf.constant(is_real),
        tf.constant([[drafter[text] for text in row[:inner]] for row in before], dtype),
    )
    of_target = tf.constant([[target[text] for text in row] for row in before], dtype)
    node, at = SpecTr().draw(of_target, given, tree, tf.constant([number for _, number, _ in rows], dtype))
    after = residual_at(SpecTr(), of_target, given, tree, at, node).numpy().astype(np.float64)
    after /= after.sum(axis=1, keepdims=True)
    found = [before[row][at_node] for row, at_node in enumerate(node.numpy().tolist())]
    wrong = sum(other not in (one, None) for one, other in zip(found, texts, strict=True))
    emitted = ((share, found[row], after[row]) for row, (_, _, share) in enumerate(rows) if share > 0)
    law = oracle.complete(target, length, emitted).law
    return float(np.abs(law - joint_law(target, size, length + 1)).max()), wrong


def test_draw_at_the_ends_of_all_numbers_takes_no_draft_that_was_not_made_or_is_never_accepted():
    """At 0 and the largest number below 1, for drafts of which any may be missing."""
    generator, tree = np.random.default_rng(0), TokenTree.chains(4, 2)
    rows, size = 400, 3
    base, target = (generator.dirichlet(np.full(size, 0.5), (rows, n)).astype(np.float32) for n in (5, 9))
    tokens = generator.integers(0, size, [rows, 9]).astype(np.int32)
    is_real = generator.random([rows, 9]) < 0.6
    is_real[:, 0] = True
    is_real[:, 5:] &= is_real[:, 1:5]
    drafts = Drafts(tf.constant(tokens), tf.constant(is_real), tf.constant(base))
    stops = SpecTr().stops(tf.constant(target), drafts, tree)[0].numpy()
    for number in (0.0, 1 - 2.0**-24):
        node = SpecTr().draw(tf.constant(target), drafts, tree, tf.fill([rows], number))[0].numpy()
        assert len(set(node.tolist())) > 1
        np.testing.assert_array_equal(is_real[np.arange(rows), node], True)
        assert np.all(stops[np.arange(rows), node] > 0)


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize(("size", "num_drafts", "length"), CASES)
def test_output_of_draw_over_all_random_numbers_has_the_distribution_of_the_target(size, num_drafts, length, passes):
    error, wrong = integrate(size, num_drafts, length, seed=4 if passes else 3, passes=passes)
    assert error < 1e-12 and wrong == 0


@pytest.mark.parametrize(("size", "num_drafts", "length"), CASES[1:2])
def test_output_of_draw_in_float32_errs_by_rounding_only(size, num_drafts, length):
    error, wrong = integrate(size, num_drafts, length, dtype=np.float32)
    assert error < 1e-5 and wrong == 0

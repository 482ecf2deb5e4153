"""Enumerates the output of a verifier of draft trees on tiny models, without any sampling."""

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.child_drafting import child_law, normalized, split
from models.decoding.enumeration import Chain, Output, Table, Tokens
from models.decoding.tree_rules import Drafts, TreeRule, residual_at, take_node
from models.token_tree import TokenTree


def enumerate_tree(
    rule: TreeRule, target: Table, drafter: Table, size: int, tree: TokenTree, *, dtype: Any = np.float64
) -> Output:
    """Returns the distribution of the first D + 1 tokens after one tree of depth D, completed by the target.

    Args:
      rule: the verifier.
      target: the target's distributions after all texts of up to D tokens.
      drafter: the drafter's distributions after the same texts; all 0 where it proposes nothing.
      size: number of tokens V.
      tree: the tree.
      dtype: NumPy type in which the rule computes, float32 or float64.
    """
    chain = Chain(target, drafter, size)
    depth = len(tree.levels) - 1
    law, accepted = np.zeros([size] * (depth + 1)), 0.0
    tokens, weight, nodes, is_real, base = _draft(rule.drafting, chain, size, tree)
    rows = tf.constant(chain.target[nodes], dtype)
    drafts = Drafts(tf.constant(tokens), tf.constant(is_real), tf.constant(base, dtype))
    probability, state = rule.stops(rows, drafts, tree)
    for node in range(len(tree)):
        share = weight * probability[:, node].numpy().astype(np.float64)
        which = np.flatnonzero(share)
        if not which.size:
            continue
        part = tf.nest.map_structure(lambda x: tf.gather(x, which), (rows, drafts, state))  # noqa: B023
        at = tf.fill([len(which)], node)
        after = residual_at(rule, part[0], part[1], tree, take_node(part[2], at), at).numpy()
        after = after.astype(np.float64) / after.sum(axis=1, keepdims=True, dtype=np.float64)
        path = tree.paths[node, 1 : tree.depths[node] + 1]
        accepted += float(share[which].sum()) * len(path)
        texts, inverse = np.unique(tokens[which][:, path], axis=0, return_inverse=True)
        for number, text in enumerate(texts):
            of_text = (share[which][:, np.newaxis] * after)[inverse.ravel() == number].sum(axis=0)
            for token in range(size):
                prefix: Tokens = (*text.tolist(), token)
                law[prefix] += of_text[token] * _completion(target, size, prefix, depth + 1)
    return Output(law, np.array([accepted]))


def _completion(target: Table, size: int, prefix: Tokens, count: int) -> Any:
    """Returns the target's distribution of the tokens from the end of `prefix` to the first `count`."""
    law: NDArray[np.float64] = np.ones([size] * (count - len(prefix)))
    for rest in itertools.product(range(size), repeat=count - len(prefix)):
        text = (*prefix, *rest)
        for place in range(len(prefix), count):
            law[rest] *= target[text[:place]][text[place]]
    return law


def _draft(drafting: str, chain: Chain, size: int, tree: TokenTree) -> tuple[NDArray[Any], ...]:
    """Returns all trees that can be drafted: tokens, probability, texts by number, drafted or not, bases."""
    tokens, weight = np.zeros([1, 1], np.int32), np.ones(1)
    nodes, is_real = np.zeros([1, 1], int), np.ones([1, 1], bool)
    bases: list[NDArray[np.float64]] = []
    for level, below in pairwise(tree.levels):
        count = len(below) // len(level)
        for parent in level:
            probabilities = chain.drafter[nodes[:, parent]]
            of_parent, certain = split(drafting, tf.constant(probabilities), tf.constant(probabilities), count)
            base, certain = normalized(of_parent), certain.numpy()
            proposes = is_real[:, parent] & probabilities.any(axis=1)
            options = np.array(list(itertools.product(range(size), repeat=count - certain.shape[1])), np.int32)
            row = np.repeat(np.arange(len(tokens)), len(options))
            drawn = np.concatenate([np.tile(options, (len(tokens), 1)), certain[row]], axis=1)
            chance, drawn_real = np.ones(len(row)), np.repeat(proposes[row, np.newaxis], count, axis=1)
            for place in range(options.shape[1]):
                law = child_law(drafting, tf.gather(base, row), tf.constant(drawn), place)
                assert law is not None
                possible = proposes[row] & (law.numpy().sum(axis=1) > 0)
                drawn_real[:, place] = possible
                of_token = np.take_along_axis(law.numpy(), drawn[:, place, np.newaxis], 1)[:, 0]
                # A child that cannot be drawn has token 0 in its place.
                chance *= np.where(possible, of_token, drawn[:, place] == 0)
            kept = weight[row] * chance > 0
            row, drawn, drawn_real = row[kept], drawn[kept], drawn_real[kept]
            weight = (weight[row]) * chance[kept]
            children = chain.child[nodes[row, parent][:, np.newaxis], drawn]
            tokens = np.concatenate([tokens[row], drawn], axis=1)
            nodes = np.concatenate([nodes[row], children], axis=1)
            is_real = np.concatenate([is_real[row], drawn_real], axis=1)
            bases = [earlier[row] for earlier in bases] + [base.numpy()[row]]
    return tokens, weight, nodes, is_real, np.stack(bases, axis=1)

"""The exact law of speculative decoding in which every random number is identified by its key.

A random number is uniform on [0, 1), and every decision (a drafted token, the number of accepted tokens, the token
after them) cuts the interval that its number is known to lie in. If a later decision on the same path has the same key,
its number still lies in the interval where the earlier one has left it. So reuse of a key shows in the law exactly.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.verification import Rule, residuals

Text = tuple[int, ...]
Table = dict[Text, NDArray[np.float64]]
Interval = tuple[float, float]
Key = tuple[int, tuple[int, int]]  # stream, counter of two words
KeyMap = Callable[[int, int], list[Key]]
"""(block's start, G) → keys of the G drafted tokens, of the number of accepted ones, of residual and bonus."""


def law(
    key_map: KeyMap, rule: Rule, target: Table, drafter: Table, size: int, draft_length: int, blocks: int, count: int
) -> NDArray[np.float64]:
    """Returns the probability of each sequence of the first `count` tokens, completed by the target after `blocks`."""
    decisions = _decisions(rule, target, drafter, size, draft_length, count)
    found = np.zeros([size] * count)
    paths: dict[tuple[Text, Any], float] = {((), ()): 1.0}
    for _ in range(blocks):
        grown: dict[tuple[Text, Any], float] = {}
        for (text, known), weight in paths.items():
            keys = key_map(len(text), draft_length)
            for after, share, words in _block(text, dict(known), keys, drafter, decisions):
                if len(after) >= count:
                    found[after[:count]] += weight * share
                    continue
                # Numbers that no later block uses again are forgotten, so that equal paths can be joined.
                coming = {key for start in range(len(after), count) for key in key_map(start, draft_length)}
                kept = tuple(sorted(item for item in words.items() if item[0] in coming))
                grown[after, kept] = grown.get((after, kept), 0.0) + weight * share
        paths = grown
    for (text, _), weight in paths.items():
        for rest in itertools.product(range(size), repeat=count - len(text)):
            whole = (*text, *rest)
            found[whole] += weight * np.prod([at(target, whole[:i])[whole[i]] for i in range(len(text), count)])
    return found


def at(table: Table, text: Text) -> NDArray[np.float64]:
    """Returns the distribution after a text; one longer than the table's is looked up by its last tokens."""
    depth = max(map(len, table))
    return table[text[max(0, len(text) - depth) :]]


def _block(
    text: Text, words: dict[Key, Interval], keys: list[Key], drafter: Table, decisions: Any
) -> Iterator[tuple[Text, float, dict[Key, Interval]]]:
    """Yields the texts after one block, with probability and intervals of the random numbers."""
    *draft_keys, accept, residual, bonus = keys
    drafts: list[tuple[Text, float, dict[Key, Interval]]] = [((), 1.0, words)]
    for key in draft_keys:
        drafts = [
            ((*draft, token), weight * share, cut)
            for draft, weight, known in drafts
            for token, share, cut in _decide(at(drafter, (*text, *draft)), key, known)
        ]
    for draft, weight, known in drafts:
        stops, after = decisions[text, draft]
        for tau, share, cut in _decide(stops, accept, known):
            for token, chance, last in _decide(after[tau], bonus if tau == len(draft) else residual, cut):
                yield (*text, *draft[:tau], token), weight * share * chance, last


def _decide(
    probabilities: NDArray[np.float64], key: Key, words: dict[Key, Interval]
) -> Iterator[tuple[int, float, dict[Key, Interval]]]:
    """Yields each outcome of an inverse CDF with its probability, given what is known of the number of this key."""
    low, high = words.get(key, (0.0, 1.0))
    bounds = [0.0, *np.cumsum(probabilities)[:-1].tolist(), 1.0]
    for outcome, (left, right) in enumerate(itertools.pairwise(bounds)):
        left, right = max(left, low), min(right, high)
        if right > left:
            yield outcome, (right - left) / (high - low), {**words, key: (left, right)}


def _decisions(rule: Rule, target: Table, drafter: Table, size: int, draft_length: int, count: int) -> Any:
    """Returns (text, draft) → probabilities of each number of accepted tokens, and of the token after them."""
    texts = [text for length in range(count) for text in itertools.product(range(size), repeat=length)]
    cases = list(itertools.product(texts, itertools.product(range(size), repeat=draft_length)))
    rows = [[at(target, (*text, *draft[:i])) for i in range(draft_length + 1)] for text, draft in cases]
    drafted = [[at(drafter, (*text, *draft[:i])) for i in range(draft_length)] for text, draft in cases]
    models = tf.constant(rows), tf.constant(drafted)
    stops = rule(*models, tf.constant([draft for _, draft in cases]), tf.fill([len(cases)], draft_length))
    after = residuals(stops, *models).numpy()
    return {case: (stops.probability.numpy()[i], after[i]) for i, case in enumerate(cases)}

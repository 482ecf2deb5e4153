"""Enumerates rules that verify several drafts at once, slowly, in plain Python and float64.

Models are tables: prefix (tuple of tokens) → distribution `[V]`. Every rule returns the exact joint distribution of the
first depth + 1 tokens, where the target continues what the rule emits, and the expected number of accepted tokens.
A distribution over outcomes is a list of (probability, outcome).
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Law = NDArray[np.float64]
Models = dict[tuple[int, ...], Law]
Children = Callable[[Law, int], Iterator[tuple[float, list[tuple[int, Law]]]]]


class Outcome(NamedTuple):
    """Holds the joint distribution `[V, …, V]` of the first tokens, and the expected number of accepted tokens."""

    law: Law
    accepted: float


def draw_models(generator: np.random.Generator, size: int, depth: int) -> tuple[Models, Models]:
    """Draws a target and a drafter after every prefix of up to `depth` tokens; some are equal, some have zeros."""
    target: Models = {}
    drafter: Models = {}
    for length in range(depth + 1):
        for prefix in itertools.product(range(size), repeat=length):
            for table in (target, drafter):
                law = generator.dirichlet(np.full(size, generator.choice([0.3, 1, 3])))
                law[generator.integers(size)] *= generator.random() < 0.6
                table[prefix] = law / law.sum()
            if generator.random() < 0.1:
                drafter[prefix] = target[prefix]
    return target, drafter


def joint(models: Models, tokens: tuple[int, ...]) -> float:
    """Returns the probability of a text."""
    return float(np.prod([models[tokens[:place]][token] for place, token in enumerate(tokens)]))


def joint_law(target: Models, depth: int) -> Law:
    """Returns the target's joint distribution of the first depth + 1 tokens."""
    size = len(target[()])
    law = np.zeros([size] * (depth + 1))
    for tokens in np.ndindex(*law.shape):
        law[tokens] = joint(target, tokens)
    return law


def complete(target: Models, depth: int, emitted: Iterator[tuple[float, tuple[int, ...], Law]]) -> Outcome:
    """Sums over (probability, accepted tokens, distribution of the token after them, or weights of any sum)."""
    size = len(target[()])
    sums: dict[tuple[int, ...], Law] = {}
    for probability, path, following in emitted:
        sums[path] = sums.get(path, np.zeros(size)) + probability * following
    law = np.zeros([size] * (depth + 1))
    for path, following in sums.items():
        for tokens in np.ndindex(*law.shape):
            if tokens[: len(path)] == path:
                rest = [target[tokens[:place]][tokens[place]] for place in range(len(path) + 1, depth + 1)]
                law[tokens] += following[tokens[len(path)]] * np.prod(rest)
    return Outcome(law, float(sum(len(path) * following.sum() for path, following in sums.items())))


# ---------------------------------------------------------------------------------------------------------------------
# Trees: children of a node are drafted in an order, each from a distribution that may depend on its elder siblings.
# ---------------------------------------------------------------------------------------------------------------------


def greedy_children(p: Law, count: int) -> Iterator[tuple[float, list[tuple[int, Law]]]]:
    """Drafts one random token outside the count - 1 likeliest, or else the next likeliest, then these."""
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    likeliest = order[: count - 1]
    certain = [(token, np.eye(len(p))[token]) for token in likeliest]
    rest = np.array([0.0 if token in likeliest else p[token] for token in range(len(p))])
    if not rest.any():
        rest[order[count - 1]] = 1
    rest /= rest.sum()
    for token in np.flatnonzero(rest):
        yield rest[token], [(int(token), rest), *certain]


def independent_children(p: Law, count: int) -> Iterator[tuple[float, list[tuple[int, Law]]]]:
    """Drafts from p."""
    for tokens in itertools.product(np.flatnonzero(p).tolist(), repeat=count):
        yield float(np.prod(p[list(tokens)])), [(token, p) for token in tokens]


def distinct_children(p: Law, count: int) -> Iterator[tuple[float, list[tuple[int, Law]]]]:
    """Drafts from p without the elder siblings; fewer than `count` where p has fewer tokens."""
    if count == 0 or not p.any():
        yield 1.0, []
        return
    law = p / p.sum()
    for token in np.flatnonzero(law):
        for probability, younger in distinct_children(np.where(np.arange(len(p)) == token, 0, p), count - 1):
            yield law[token] * probability, [(int(token), law), *younger]


def after_rejection(weight: float, law: Law, drafted: Law) -> tuple[float, Law]:
    """Returns the weight and distribution at a node after the rejection of a child drafted from `drafted`."""
    residual = np.maximum(weight * law - drafted, 0)
    mass = residual.sum()
    missing = mass + 1 - weight
    return (mass / missing if missing > 0 else 1.0), (residual / mass if mass > 0 else law)


def tree(
    target: Models,
    drafter: Models,
    shape: tuple[int, ...],
    children: Children,
    rejected: Callable[[float, Law, Law], tuple[float, Law]] = after_rejection,
) -> Outcome:
    """Verifies a tree whose nodes of level i have shape[i] children, from the leaves to the root.

    A node asks its children in drafting order. A child gets the weight min(1, weight · law / drafted). Each rejection
    changes weight and law by `rejected`; after all, the node accepts with the weight that is left.
    """

    def grow(prefix: tuple[int, ...]) -> list[tuple[float, list[Any]]]:
        """Returns all drafted trees below a prefix, as lists of (token, its distribution, its own tree)."""
        if len(prefix) == len(shape):
            return [(1.0, [])]
        grown = []
        for probability, family in children(drafter[prefix], shape[len(prefix)]):
            for below in itertools.product(*(grow((*prefix, token)) for token, _ in family)):
                nodes = [(*child, subtree) for child, (_, subtree) in zip(family, below, strict=True)]
                grown.append((probability * float(np.prod([p for p, _ in below])), nodes))
        return grown

    def visit(prefix: tuple[int, ...], nodes: list[Any], weight: float) -> tuple[list[Any], float]:
        """Returns all acceptances below and at a node, and the probability of none."""
        law, accepted, passed = target[prefix], [], 1.0
        for token, drafted, below in nodes:
            found, missed = visit((*prefix, token), below, min(1.0, weight * law[token] / drafted[token]))
            accepted += [(passed * probability, path, following) for probability, path, following in found]
            passed *= missed
            weight, law = rejected(weight, law, drafted)
        return [*accepted, (passed * weight, prefix, law)], passed * (1 - weight)

    def emitted() -> Iterator[tuple[float, tuple[int, ...], Law]]:
        for drawn, nodes in grow(()):
            for probability, path, following in visit((), nodes, 1.0)[0]:
                yield drawn * probability, path, following

    return complete(target, len(shape), emitted())


# ---------------------------------------------------------------------------------------------------------------------
# Chains: K independent drafts of some length.
# ---------------------------------------------------------------------------------------------------------------------


def chains(drafter: Models, num_drafts: int, length: int) -> Iterator[tuple[float, tuple[tuple[int, ...], ...]]]:
    """Returns all tuples of chains with their probabilities."""
    texts = itertools.product(range(len(drafter[()])), repeat=length)
    likely = [text for text in texts if joint(drafter, text) > 0]
    for drafts in itertools.product(likely, repeat=num_drafts):
        yield float(np.prod([joint(drafter, draft) for draft in drafts])), drafts


def k_seq_rho(p: Law, q: Law, count: int) -> float:
    """Returns the least ρ whose residual is nowhere negative, from above, by halving [1, count]."""
    if np.array_equal(p, q):
        return 1.0  # a root of order `count`, of which halving finds the first digits only
    low, high = 1.0, float(count)
    for _ in range(60):
        middle = (low + high) / 2
        beta = np.minimum(p, q / middle).sum()
        if 1 - (1 - beta) ** count > middle * beta:
            low = middle
        else:
            high = middle
    return high


def spectr(
    target: Models,
    drafter: Models,
    num_drafts: int,
    length: int,
    rho: Callable[[Law, Law, int], float] = k_seq_rho,
) -> Outcome:
    """Verifies chains by K-SEQ at each place, among the chains that have all emitted tokens so far."""

    def follow(prefix: tuple[int, ...], drafts: list[tuple[int, ...]]) -> Iterator[tuple[float, tuple[int, ...], Law]]:
        place, count = len(prefix), len(drafts)
        if place == length:
            yield 1.0, prefix, target[prefix]
            return
        p, q = drafter[prefix], target[prefix]
        factor = rho(p, q, count)
        shared = np.minimum(p, q / factor)
        passed = 1.0
        for draft in drafts:
            token = draft[place]
            accept = shared[token] / p[token]
            alive = [other for other in drafts if other[place] == token]
            for probability, path, following in follow((*prefix, token), alive) if accept > 0 else ():
                yield passed * accept * probability, path, following
            passed *= 1 - accept
        beta = shared.sum()
        residual = np.maximum(q - sum((1 - beta) ** j for j in range(count)) * shared, 0)
        yield passed, prefix, residual / residual.sum() if residual.any() else q

    def emitted() -> Iterator[tuple[float, tuple[int, ...], Law]]:
        for drawn, drafts in chains(drafter, num_drafts, length):
            for probability, path, following in follow((), list(drafts)):
                yield drawn * probability, path, following

    return complete(target, length, emitted())


def multi_path(
    target: Models,
    drafter: Models,
    num_drafts: int,
    length: int,
    order: Callable[[Law, Law], Law] = lambda p, q: np.where(p > 0, q / np.where(p > 0, p, 1), np.inf),
) -> Outcome:
    """Selects the chain that is last in the order of tokens at each node, and verifies it as a block.

    At each node tokens are in ascending `order`, equal ones by id. The distribution of the selected chain is found by
    enumeration, and verified is with its conditional distributions in place of the drafter's.
    """
    size = len(target[()])

    def rank(draft: tuple[int, ...]) -> list[int]:
        ranks = []
        for place, token in enumerate(draft):
            before = draft[:place]
            ranks.append(int(np.argsort(np.argsort(order(drafter[before], target[before]), kind="stable"))[token]))
        return ranks

    mass: dict[tuple[int, ...], float] = {}
    for drawn, drafts in chains(drafter, num_drafts, length):
        selected = max(drafts, key=rank)
        for end in range(length + 1):
            mass[selected[:end]] = mass.get(selected[:end], 0.0) + drawn

    def law_after(prefix: tuple[int, ...]) -> Law:
        return np.array([mass.get((*prefix, token), 0.0) for token in range(size)]) / mass[prefix]

    def emitted() -> Iterator[tuple[float, tuple[int, ...], Law]]:
        for chain in (path for path in mass if len(path) == length):
            weights, laws = [1.0], [law_after(chain[:place]) for place in range(length)]
            for place, token in enumerate(chain):
                weights.append(min(1.0, weights[-1] * target[chain[:place]][token] / laws[place][token]))
            yield mass[chain] * weights[-1], chain, target[chain]
            passed = 1 - weights[-1]
            for end in reversed(range(length)):
                residual = np.maximum(weights[end] * target[chain[:end]] - laws[end], 0)
                missing = residual.sum() + 1 - weights[end]
                stop = 1.0 if end == 0 or missing <= 0 else residual.sum() / missing
                following = residual / residual.sum() if residual.any() else target[chain[:end]]
                yield mass[chain] * passed * stop, chain[:end], following
                passed *= 1 - stop

    return complete(target, length, emitted())


# ---------------------------------------------------------------------------------------------------------------------
# Drafter-invariant decoding with K drafts: exponential races with common noise.
# ---------------------------------------------------------------------------------------------------------------------


Exponentials = list[tuple[float, float]]
"""A function of T: the sum of factor · exp(-rate T) over pairs (rate, factor)."""


def survivors(p: Law, q: Law, count: int) -> Law:
    """Returns Pr(Y = y, m drafts equal it) `[V, count + 1]` at one place with `count` drafts alive.

    Draft k is argmin_i E^k_i / p_i, and Y = argmin_i min_k E^k_i / q_i with standard exponentials E. The least of all
    E^k_i / q_i is T ~ Exp(count), at Y ~ q and a uniform k, all independent. Given these, E^k_Y = q_Y T, and every
    other E^j_i is q_i T + F^j_i with standard exponentials F. Then drafts are independent: draft k equals Y with
    probability exp(-T Σ_i max(p_i q_Y / p_Y - q_i, 0)), and another with the mean over F_Y of
    Π_i Pr(F_i > (q_Y T + F_Y) p_i / p_Y - q_i T). Both are sums of exponentials in T.
    """
    found = np.zeros((len(q), count + 1))
    for token in np.flatnonzero(q):
        if p[token] == 0:
            found[token, 0] = q[token]
            continue
        ratio = np.delete(p, token) / p[token]
        offset = np.delete(q, token) - ratio * q[token]
        first = [(-float(np.minimum(offset, 0).sum()), 1.0)]
        equal: list[Exponentials] = [[(0.0, q[token])]]  # entry m: Pr(Y = token, m of the drafts so far equal it | T)
        for chance in [first] + [_mean_over_own_noise(ratio, offset)] * (count - 1):
            missed = [(0.0, 1.0)] + [(rate, -factor) for rate, factor in chance]
            equal = [
                _product(same, missed) + _product(fewer, chance)
                for same, fewer in zip([*equal, []], [[], *equal], strict=True)
            ]
        found[token] = [sum(factor * count / (count + rate) for rate, factor in terms) for terms in equal]
    return found


def _product(one: Exponentials, other: Exponentials) -> Exponentials:
    return [(a + b, c * d) for (a, c), (b, d) in itertools.product(one, other)]


def _mean_over_own_noise(ratio: Law, offset: Law) -> Exponentials:
    """Returns the integral over f > 0 of exp(-f - Σ_i max(ratio_i f - offset_i T, 0)), by pieces between kinks."""
    kinks = np.unique([0.0, *(o / r for r, o in zip(ratio, offset, strict=True) if r > 0 and o > 0)])
    terms = []
    for begin, end in zip(kinks, [*kinks[1:], np.inf], strict=True):
        active = ratio * (begin + min(1.0, (end - begin) / 2)) > offset
        slope = 1 + ratio[active].sum()
        terms += [(slope * x - offset[active].sum(), sign / slope) for x, sign in ((begin, 1), (end, -1)) if x < np.inf]
    return terms


def invariant_list(target: Models, drafter: Models, num_drafts: int, length: int) -> Outcome:
    """Emits the target's race at each place while drafts equal it; what it emits does not depend on the drafts."""

    def follow(prefix: tuple[int, ...], count: int) -> Iterator[tuple[float, tuple[int, ...], Law]]:
        if len(prefix) == length:
            yield 1.0, prefix, target[prefix]
            return
        found = survivors(drafter[prefix], target[prefix], count)
        yield 1.0, prefix, found[:, 0]
        for token, alive in itertools.product(range(len(found)), range(1, count + 1)):
            if found[token, alive] > 0:
                for probability, path, following in follow((*prefix, token), alive):
                    yield found[token, alive] * probability, path, following

    return complete(target, length, follow((), num_drafts))

"""Computes how often a target's token can be among K drafts: for the best verifier there is, and for four rules.

A verifier sees K drafts of one token from a drafter's distribution p and emits one token of the target's distribution
q. Its acceptance is the probability that this token is one of the drafts. Over all verifiers the largest acceptance is

    min over sets H of tokens of q(H) + 1 - Pr(all drafts are in H),

the minimum cut of the transport problem between drafts and tokens. For drafts that are independent or distinct the
smallest cut is a prefix of the tokens in ascending order of q / p, so that sorting replaces a linear program with
V^(K+1) variables.

The functions take probabilities of the processed distributions, as they are sampled from, and compute in float64. They
need NumPy alone. Sorting dominates their time, O(V log V), but for distinct drafts with K >= 3: those take O(V K) times
some 100 to 300 nodes of a quadrature, 0.4 to 1.3 s for 50,000 tokens.

Reference: Sun et al. 2023, https://arxiv.org/abs/2310.15141; Hu et al. 2025, https://arxiv.org/abs/2502.18779.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.decoding.choices import require_integer

Probabilities = NDArray[np.float64]
_QUADRATURE_ERROR = 1e-13
_TOKENS_AT_ONCE = 512
_MOST_DRAFTS = 4096


def optimal_acceptance(drafter: ArrayLike, target: ArrayLike, num_drafts: int, *, replacement: bool = True) -> float:
    """Returns the largest probability, over all verifiers, that the target's token is among the drafts.

    Args:
      drafter: distribution p of the drafts, `[V]`.
      target: distribution q of the emitted token, `[V]`.
      num_drafts: number K of drafts, 1 to 4,096.
      replacement: whether the drafts are independent. Otherwise each is drawn from p without the tokens drawn before
        it, and they end when no token of p is left.

    Returns:
      The acceptance in [0, 1], 1 - TV(p, q) for one draft. Its error is about 1e-15, and below 1e-12 for three and more
      distinct drafts.

    Raises:
      ValueError: a distribution or `num_drafts` is outside its range.
    """
    p, q, count = _checked(drafter, target, num_drafts)
    p, q = _ascending(p, q)
    all_inside: Probabilities = np.cumsum(p) ** count
    if not replacement:
        all_inside = _distinct_inside(p, min(count, len(p)))
    all_inside[-1] = 1
    return float(min(1.0, np.min(np.cumsum(q) + 1 - all_inside)))


def greedy_acceptance(drafter: ArrayLike, target: ArrayLike, num_drafts: int) -> float:
    """Returns the largest acceptance with one random draft and the drafter's K - 1 likeliest tokens.

    With T these tokens, the lowest ids first among equals, the random draft is from p without T, renormalised to p̃.
    If p has no mass outside T, the next likeliest token takes its place, for certain, as in
    `models.decoding.child_drafting.split`. The acceptance is q(T) + Σ min(q, p̃) over the other tokens.

    Args:
      drafter: as for `optimal_acceptance`.
      target: as for `optimal_acceptance`.
      num_drafts: number K of drafts, 1 to 4,096, the random one included. More than V draft all tokens.

    Raises:
      ValueError: a distribution or `num_drafts` is outside its range.
    """
    p, q, count = _checked(drafter, target, num_drafts)
    order = np.argsort(-p, kind="stable")
    likeliest, following = order[: count - 1], order[count - 1 : count]
    rest = p.copy()
    rest[likeliest] = 0
    if not rest.any():
        rest[following] = 1
    rest /= rest.sum() or 1.0
    return float(min(1.0, q[likeliest].sum() + np.minimum(q, rest).sum()))


def k_seq_acceptance(drafter: ArrayLike, target: ArrayLike, num_drafts: int) -> float:
    """Returns the acceptance of K-SEQ, the rule of SpecTr, for independent drafts.

    It is 1 - (1 - β)^K with β = Σ min(p, q / ρ), at the root ρ in [1, K] of 1 - (1 - β)^K = ρ β, and at least
    `k_seq_guarantee` times the optimum.

    Args:
      drafter: as for `optimal_acceptance`.
      target: as for `optimal_acceptance`.
      num_drafts: number K of drafts, 1 to 4,096.

    Raises:
      ValueError: a distribution or `num_drafts` is outside its range.
    """
    p, q, count = _checked(drafter, target, num_drafts)
    low, high = 1.0, float(count)
    while low < (middle := (low + high) / 2) < high:
        # Both sides divided by β are a geometric sum and ρ, which need no care where β is 0.
        if np.sum(_missed(p, q, middle) ** np.arange(count)) > middle:
            low = middle
        else:
            high = middle
    return 1 - _missed(p, q, high) ** count


def multi_path_acceptance(drafter: ArrayLike, target: ArrayLike, num_drafts: int) -> float:
    """Returns how often `models.decoding.multi_path.MultiPath` accepts a first token of K independent drafts.

    It takes the last of the first k drafts in the order of ascending q / p, with the k ≤ K that accepts the most. That
    draft has a distribution r, and is accepted with probability Σ min(q, r).

    Args:
      drafter: as for `optimal_acceptance`.
      target: as for `optimal_acceptance`.
      num_drafts: number K of drafts, 1 to 4,096.

    Raises:
      ValueError: a distribution or `num_drafts` is outside its range.
    """
    p, q, count = _checked(drafter, target, num_drafts)
    p, q = _ascending(p, q)
    inside = np.minimum(np.cumsum(p), 1)
    inside[-1] = 1
    return max(float(np.minimum(q, np.diff(inside**k, prepend=0)).sum()) for k in range(1, count + 1))


def recursive_acceptance(drafter: ArrayLike, target: ArrayLike, num_drafts: int) -> float:
    """Returns how often one or two distinct drafts are accepted one after another, as in a tree without replacement.

    The first is accepted with probability min(1, q / p). After its rejection the second is verified by the same rule
    for q' in place of q, which is proportional to max(q - p, 0), and p without the first token, renormalised.

    Args:
      drafter: as for `optimal_acceptance`.
      target: as for `optimal_acceptance`.
      num_drafts: number K of drafts, 1 or 2. For more, the sum over their V^(K - 1) sequences has no short form.

    Raises:
      ValueError: a distribution or `num_drafts` is outside its range.
    """
    require_integer("num_drafts", num_drafts, 1, 2)
    p, q, count = _checked(drafter, target, num_drafts)
    first, left = float(np.minimum(p, q).sum()), np.maximum(q - p, 0)
    if count == 1 or not left.any():
        return first
    held = p > 0
    left = left[held] / left.sum()
    p, q = p[held], q[held]
    heaviest, others = int(np.argmax(p)), 1 - p
    others[heaviest] = np.delete(p, heaviest).sum()
    # Σ min(left, c p) for each c = 1 / others: tokens in ascending order of left / p give `left` up to c.
    order = np.argsort(left / p, kind="stable")
    factor = np.divide(1, others, out=np.zeros_like(others), where=others > 0)
    place = np.searchsorted((left / p)[order], factor, side="right")
    of_left, of_drafter = (np.append(0, np.cumsum(part[order])) for part in (left, p))
    second = of_left[place] + factor * (of_drafter[-1] - of_drafter[place])
    return min(1.0, first + float(np.sum(np.maximum(p - q, 0) * second)))


def k_seq_guarantee(num_drafts: int) -> float:
    """Returns 1 - (1 - 1/K)^K, the share of the optimum that K-SEQ reaches on every pair; it is above 1 - 1/e.

    Args:
      num_drafts: number K of drafts, 1 to 4,096.

    Raises:
      ValueError: `num_drafts` is outside its range.
    """
    count = require_integer("num_drafts", num_drafts, 1, _MOST_DRAFTS)
    return 1 - (1 - 1 / count) ** count


def _ascending(p: Probabilities, q: Probabilities) -> tuple[Probabilities, Probabilities]:
    """Returns the entries of the tokens with p > 0 in ascending order of q / p."""
    p, q = p[p > 0], q[p > 0]
    with np.errstate(over="ignore"):
        order = np.argsort(q / p, kind="stable")
    return p[order], q[order]


def _missed(p: Probabilities, q: Probabilities, rho: float) -> float:
    """Returns 1 - β(ρ), the probability that K-SEQ rejects a draft; exactly 0 if p equals q and ρ is 1."""
    return min(1.0, float(np.maximum(p - q / rho, 0).sum()))


def _distinct_inside(p: Probabilities, count: int) -> Probabilities:
    """Returns the probability that `count` distinct drafts are among the first 1, 2, …, V tokens, all of p > 0."""
    if count == 1:
        return np.cumsum(p)
    return _two_inside(p) if count == 2 else _many_inside(p, count)


def _two_inside(p: Probabilities) -> Probabilities:
    """Returns Σ p_i p_j / (1 - p_i) over all i != j in each prefix.

    The likeliest token stands apart: only for it can 1 - p_i be small, and is then computed from the other tokens.
    """
    heaviest = int(np.argmax(p))
    others = p.copy()
    others[heaviest] = 0
    rest = np.cumsum(others)
    holds_heaviest = np.arange(len(p)) >= heaviest
    odds = others / (1 - others)
    begins_with_other = (rest + holds_heaviest * p[heaviest]) * np.cumsum(odds) - np.cumsum(others * odds)
    return begins_with_other + holds_heaviest * p[heaviest] * rest / rest[-1]


def _many_inside(p: Probabilities, count: int) -> Probabilities:
    """Returns, for each prefix, the probability that the first `count` arrivals of a race are inside it.

    Tokens arrive at independent times E_i ~ Exp(p_i), so that their order is that of draws without replacement. The
    first token outside arrives at T ~ Exp(rest), where `rest` is the mass outside; the probability is that of at least
    `count` arrivals inside before T. Their number before t follows a recursion over tokens, on the same nodes t for all
    prefixes, so that every prefix is examined. The nodes are those of the trapezoidal rule in log t, which converges
    exponentially: the integrand is analytic in log t where the imaginary part θ is below π/2, and integrates to at most
    2 cos(θ)^-count there.
    """
    rest = np.append(np.cumsum(p[:0:-1])[::-1], 0.0)
    angle = np.linspace(0.1, 1.5, 141)
    step = np.max(2 * math.pi * angle / (math.log(4 / _QUADRATURE_ERROR) - count * np.log(np.cos(angle))))
    # Before the first node and after the last one lies less than 1e-17 of the integral.
    first = (math.lgamma(count + 2) - 39.2) / (count + 1)
    nodes = np.exp(np.arange(min(first, 0.0), min(math.log(40) - math.log(p[-1]), 700.0) + step, step))
    inside = np.empty(len(p))
    arrived = np.zeros((count, len(nodes)))  # probability of 0, 1, …, count - 1 arrivals before each node
    arrived[0] = 1
    for begin in range(0, len(p), _TOKENS_AT_ONCE):
        some = slice(begin, begin + _TOKENS_AT_ONCE)
        arrives = -np.expm1(-np.outer(p[some], nodes))
        enough = np.empty_like(arrives)
        for row, arrival in enumerate(arrives):
            moved = arrived * arrival
            arrived -= moved
            arrived[1:] += moved[:-1]
            enough[row] = 1 - arrived.sum(axis=0)
        times = np.outer(rest[some], nodes)
        inside[some] = step * np.sum(times * np.exp(-times) * enough, axis=1)
    return inside


def _checked(drafter: ArrayLike, target: ArrayLike, num_drafts: int) -> tuple[Probabilities, Probabilities, int]:
    """Returns both distributions, normalised in float64, and the number of drafts."""
    count = require_integer("num_drafts", num_drafts, 1, _MOST_DRAFTS)
    p, q = _distribution("drafter", drafter), _distribution("target", target)
    if p.shape != q.shape:
        raise ValueError(f"drafter has {len(p)} tokens and target {len(q)}: must have one vocabulary")
    return p, q, count


def _distribution(name: str, values: ArrayLike) -> Probabilities:
    found = np.asarray(values, np.float64)
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {found.shape}: must be one distribution, [V]; call once per row")
    if not np.all(found >= 0):
        bad = int(np.argmin(np.where(np.isnan(found), -np.inf, found)))
        raise ValueError(f"{name}[{bad}] = {found[bad]}: must be a probability >= 0; pass the softmax of logits")
    total = found.sum()
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"{name} sums to {total:.9g}: must sum to 1 within 1e-6; divide it by its sum")
    return np.asarray(found / total)

"""Enumerates every draw of n samples, and what a policy makes of it: slow, and obviously right."""

import itertools

import numpy as np
from hypothesis import strategies as st

from models.alignment import Candidates


def enumerate_selection(policy, probabilities, rewards):
    """Returns the distribution of the selected outcome, `[K]`, by all K^n draws and the policy's weights for each."""
    chosen = np.zeros(len(probabilities))
    for drawn in itertools.product(range(len(probabilities)), repeat=policy.n):
        logs = policy.log_weights(Candidates(drawn, [rewards[i] for i in drawn]))
        weights = np.exp(logs - np.max(logs))
        for i, weight in zip(drawn, weights / weights.sum(), strict=True):
            chosen[i] += weight * np.prod([probabilities[j] for j in drawn])
    return chosen


def enumerate_best(probabilities, rewards, n):
    """Returns the distribution of best-of-n by all K^n draws; of tied samples each has the same chance."""
    chosen = np.zeros(len(probabilities))
    for drawn in itertools.product(range(len(probabilities)), repeat=n):
        highest = max(rewards[i] for i in drawn)
        best = [i for i in drawn if rewards[i] == highest]
        for i in best:
            chosen[i] += np.prod([probabilities[j] for j in drawn]) / len(best)
    return chosen


def spread_kl(chosen, reference):
    """Returns Σ q log(q / p) over outcomes with q > 0."""
    return sum(q * np.log(q / p) for q, p in zip(chosen, reference, strict=True) if q > 0)


def rewarded(least=1, most=60):
    """Generates (probabilities, rewards), flat and peaked, with zeros and ties."""

    def build(seed, size, concentration, kinds, zeros):
        generator = np.random.default_rng(seed)
        weights = generator.gamma(concentration, size=size) * (generator.random(size) >= zeros)
        weights[generator.integers(size)] += 1e-9  # some outcome has a probability
        return weights / weights.sum(), generator.integers(-kinds, kinds + 1, size=size) / 4

    return st.builds(
        build,
        st.integers(0, 2**32 - 1),
        st.integers(least, most),
        st.sampled_from([0.02, 0.3, 1.0, 10.0]),
        st.sampled_from([1, 4, 1000]),
        st.sampled_from([0.0, 0.0, 0.3]),
    )

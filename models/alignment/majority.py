"""Computes majority vote, which selects the answer that most of n samples give."""

import math
from collections import Counter

import numpy as np

from models.alignment.candidates import Candidates
from models.alignment.checks import Array, require_integer
from models.alignment.outcomes import Outcomes
from models.alignment.policy import Policy


class MajorityVote(Policy):
    """Selects the most frequent answer; among equally frequent ones each answer has the same chance.

    It reads no reward. The samples of `Candidates` are the answers; the rewards of `Outcomes`, such as 1 for a correct
    answer, count in the report only, and outcomes of equal reward stay different answers.
    """

    def log_weights(self, candidates: Candidates) -> Array:
        """Returns minus the log of its count for each sample of a most frequent answer, and -inf for the others."""
        counts = Counter(candidates.samples)
        most = max(counts.values())
        return np.array([-math.log(most) if counts[sample] == most else -math.inf for sample in candidates.samples])

    def distribution(self, outcomes: Outcomes) -> Array:
        """Returns the exact distribution of the selected answer, `[K]`, in O(K n⁴) steps: for n up to some 50.

        Answer i wins with c votes if all others have at most c, and shares with the t others that have c. Its chance is
        the mean of y^t for y uniform on [0, 1]. For each y the counts of the other answers are the coefficients of a
        product of polynomials with positive terms; the mean over y is exact by Gauss-Legendre nodes.

        Raises:
          ValueError: n is above 170, whose factorial is the largest that a float holds.
        """
        require_integer("n", self.n, 1, 170)
        nodes, weights = np.polynomial.legendre.leggauss(self.n // 2 + 1)
        tied = (nodes + 1) / 2
        wins = sum(self._wins(outcomes.probabilities, votes, tied) for votes in range(1, self.n + 1))
        return np.asarray(wins @ (weights / 2))

    def _wins(self, p: Array, votes: int, tied: Array) -> Array:
        """Returns for each answer and y, `[K, Y]`, the probability that it wins with this number of votes."""
        rest = self.n - votes
        counts = np.arange(min(votes, rest) + 1)
        factorials = np.array([math.factorial(count) for count in counts], float)
        terms = p[:, np.newaxis, np.newaxis] ** counts / factorials * np.ones((len(tied), 1))  # [K, Y, counts]
        if rest >= votes:
            terms[:, :, votes] *= tied
        before, after = _products(terms, rest), _products(terms[::-1], rest)[::-1]
        others = np.einsum("kyr,kyr->ky", before, after[:, :, ::-1])
        ways = math.factorial(self.n) / math.factorial(votes)
        return np.asarray(ways * p[:, np.newaxis] ** votes * others)


def _products(terms: Array, degree: int) -> Array:
    """Returns for each answer the product of the polynomials before it, up to a degree: `[K, Y, degree + 1]`."""
    product = np.zeros((terms.shape[1], degree + 1))
    product[:, 0] = 1
    products = []
    for factor in terms:
        products.append(product)
        product = sum(
            np.pad(product[:, : degree + 1 - count], [(0, 0), (count, 0)]) * factor[:, count : count + 1]
            for count in range(factor.shape[1])
        )
    return np.stack(products)

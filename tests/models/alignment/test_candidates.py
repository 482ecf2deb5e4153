"""Candidates join duplicates and ties in the probability of a level."""

import math

import numpy as np
import pytest

from models.alignment import Candidates, Outcomes
from models.alignment.best_of_n import kl_estimator

HALF, EIGHTH = math.log(0.5), math.log(0.125)


def test_a_sample_drawn_twice_counts_once():
    candidates = Candidates(["a", "b", "a"], [1.0, 0.0, 1.0], [EIGHTH, HALF, EIGHTH])
    assert candidates.log_probability(0) == candidates.log_probability(2) == pytest.approx(EIGHTH)


def test_distinct_samples_of_equal_reward_are_one_level():
    """Two token sequences that decode to one text."""
    candidates = Candidates([(1, 2), (3,), (4,)], [1.0, 1.0, 0.0], [HALF, EIGHTH, EIGHTH])
    assert candidates.log_probability(0) == candidates.log_probability(1) == pytest.approx(math.log(0.625))
    assert candidates.log_probability(2) == pytest.approx(EIGHTH)


def test_a_level_is_at_most_as_likely_as_its_outcomes_and_overestimates_the_kl():
    p, rewards = [0.2, 0.3, 0.1, 0.4], [0, 1, 1, 2]
    whole = math.log(Outcomes(p, rewards).masses[1])
    both = Candidates([1, 2, 0], [1, 1, 0], np.log([0.3, 0.1, 0.2])).log_probability(0)
    one = Candidates([1, 0, 0], [1, 0, 0], np.log([0.3, 0.2, 0.2])).log_probability(0)
    assert both == pytest.approx(whole) and one < whole
    assert kl_estimator([one], 3) > kl_estimator([both], 3)


def test_probabilities_too_small_for_a_float_keep_their_logarithm():
    candidates = Candidates([1, 2], [0.0, 0.0], [-2000.0, -2000.0])
    assert candidates.log_probability(0) == pytest.approx(-2000 + math.log(2), rel=1e-15)


def test_a_certain_sample_has_log_probability_zero_whatever_rounding_made_of_it():
    assert Candidates([1, 2], [0.0, 0.0], [1e-9, -1e-12]).log_probability(0) == 0


@pytest.mark.parametrize(
    ("rewards", "logs", "message"),
    [
        ([0.0, math.nan], None, r"rewards\[1\] = nan: must be a finite number"),
        ([0.0], None, r"rewards has shape \[1\]: must have shape \[2\]"),
        ([0.0, 1.0], [-1.0], r"log_probabilities has shape \[1\]: must have shape \[2\]"),
        ([0.0, 1.0], [-1.0, 0.5], r"log_probabilities\[1\] = 0.5: must be the logarithm of a probability, <= 0"),
        ([0.0, 1.0], [-1.0, math.nan], r"log_probabilities\[1\] = nan: must be a finite number"),
    ],
)
def test_candidates_refuse_what_is_no_reward_or_log_probability(rewards, logs, message):
    with pytest.raises(ValueError, match=message):
        Candidates(["a", "b"], rewards, logs)


def test_no_samples_at_all_are_refused():
    with pytest.raises(ValueError, match="samples is empty: give at least one sample"):
        Candidates([], [])


@pytest.mark.parametrize("index", [7, 2, -1, 0.5])
def test_positions_without_a_candidate_are_refused(index):
    with pytest.raises(ValueError, match=f"index = {index}: must be an integer from 0 to 1"):
        Candidates("ab", [1, 2], [-1, -2]).log_probability(index)


def test_samples_that_are_not_hashable_are_refused():
    with pytest.raises(ValueError, match=r"samples\[1\] has type list: must be hashable; pass tuple\(tokens\)"):
        Candidates([(1, 2), [1, 2]], [0.0, 1.0])


def test_log_probability_without_log_probabilities_is_refused():
    with pytest.raises(ValueError, match="log_probabilities is None: give the log-probability of each sample"):
        Candidates(["a"], [0.0]).log_probability(0)

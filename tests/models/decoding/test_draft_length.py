"""Automatic draft lengths maximise tokens per time, by evidence of earlier blocks only."""

import numpy as np
import tensorflow as tf

from models.decoding.choices import Costs
from models.decoding.draft_length import choose, initial_evidence, observe


def best_length(accepted, rejected, costs, longest):
    """Returns the best draft length, and by which fraction it is better than the second best."""
    rate = (accepted + 5.5) / (accepted + rejected + 8)
    nothing, verify, draft = (float(cost) for cost in costs)
    speeds = [1 / nothing]
    for k in range(1, longest + 1):
        speeds.append(sum(rate**i for i in range(k + 1)) / (verify + k * draft))
    ranked = sorted(speeds)
    return int(np.argmax(speeds)), ranked[-1] / ranked[-2] - 1


def test_choice_is_the_best_by_enumeration_for_random_evidence_and_costs():
    generator = np.random.default_rng(0)
    lengths = set()
    for _ in range(300):
        evidence = generator.exponential(10, 2).astype(np.float32)
        costs = Costs(*generator.uniform([0.9, 0.8, 0.0], [1.5, 3.0, 0.5]).astype(np.float32))
        expected, margin = best_length(float(evidence[0]), float(evidence[1]), costs, 5)
        if margin > 1e-5:
            assert choose(tf.constant(evidence[np.newaxis]), costs, 5)[0] == expected
            lengths.add(expected)
    assert lengths == set(range(6))


def test_no_draft_is_chosen_where_drafts_cannot_pay_and_the_longest_where_they_are_free():
    evidence = tf.constant([[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(choose(evidence, Costs(1.2, 3.2, 0.2), 4)[:1], [0])
    np.testing.assert_array_equal(choose(evidence, Costs(1.0, 1.0, 0.0), 4), [4, 4, 4])
    np.testing.assert_array_equal(choose(evidence, Costs(1.2, 6.2, 0.2), 4), [0, 0, 0])


def test_evidence_counts_accepted_tokens_and_one_rejection_and_forgets():
    evidence = tf.constant([[10.0, 5.0]] * 4)
    drafted, count = tf.constant([3, 3, 0, 2]), tf.constant([4, 2, 1, 1])
    active = tf.constant([True, True, True, False])
    ten, five = 10 * 63 / 64, 5 * 63 / 64
    expected = np.array([[ten + 3, five], [ten + 1, five + 1], [10.0, 5.0], [10.0, 5.0]])
    np.testing.assert_allclose(observe(evidence, drafted, count, active), expected, rtol=1e-6)


def test_evidence_begins_empty():
    np.testing.assert_array_equal(initial_evidence(2), np.zeros([2, 2]))


def test_a_row_gives_up_a_bad_drafter_after_fourteen_rejections_and_for_good():
    costs, evidence, active = Costs(1.05, 1.3, 0.06), initial_evidence(1), tf.constant([True])
    blocks = 0
    while choose(evidence, costs, 3)[0] > 0:
        evidence = observe(evidence, choose(evidence, costs, 3), tf.constant([1]), active)
        blocks += 1
    assert blocks == 14
    for _ in range(300):
        evidence = observe(evidence, tf.constant([0]), tf.constant([1]), active)
    assert choose(evidence, costs, 3)[0] == 0

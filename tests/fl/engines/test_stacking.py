"""The trial of stacking; what it says of Keras models is in tests/fl/test_keras_models.py."""

import dataclasses

import pytest
import tensorflow as tf

from fl.engines.stacking import why_not_stacked
from fl.local_training import LanguageModelling, Loss
from tests.fl import bigram


def without_axis(weights, tokens):
    """Knows of no user axis."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], tf.gather(weights["table"], tokens[:, :-1]))


@dataclasses.dataclass(frozen=True)
class Wrong(LanguageModelling):
    """Planted bugs."""

    bug: str = ""

    def loss(self, weights, batch, rows):
        right = super().loss(weights, batch, rows)
        if batch.shape.rank == 2:
            return right
        match self.bug:
            case "shared":  # one user's loss in all
                return right._replace(total=tf.reduce_mean(right.total) * tf.ones_like(right.total))
            case "padding":  # every row that is there counts
                everywhere = tf.reduce_mean(self.token_losses(weights, batch), [-2, -1])
                return Loss(everywhere * tf.cast(tf.shape(batch)[1] * 5, tf.float32), right.count)
            case "not finite":
                return right._replace(total=right.total / tf.cast(rows, tf.float32))
        return right


def test_a_task_that_stacks_is_found_to():
    assert why_not_stacked(LanguageModelling(bigram.token_losses, 5), bigram.initial_weights()) is None
    assert why_not_stacked(Wrong(bigram.token_losses, 5), bigram.initial_weights()) is None


@pytest.mark.parametrize("bug", ["shared", "padding", "not finite"])
def test_a_planted_bug_is_found(bug):
    reason = why_not_stacked(Wrong(bigram.token_losses, 5, bug=bug), bigram.initial_weights())
    assert reason is not None and "a client's loss or gradient is another" in reason


def test_a_loss_without_a_user_axis_is_found_in_one_line():
    reason = why_not_stacked(LanguageModelling(without_axis, 5), bigram.initial_weights())
    assert reason and "\n" not in reason

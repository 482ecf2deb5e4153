"""Tests the trial of stacking; tests/fl/test_keras_models.py tests it on Keras models."""

import dataclasses

import pytest
import tensorflow as tf

from fl.engines.stacking import why_not_stacked
from fl.local_training import LanguageModelling, Loss
from tests.fl import bigram


def without_client_axis(weights, tokens):
    """Computes losses, but accepts no client axis."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], tf.gather(weights["table"], tokens[:, :-1]))


@dataclasses.dataclass(frozen=True)
class Wrong(LanguageModelling):
    """A task with a planted bug."""

    bug: str = ""

    def loss(self, weights, batch, rows):
        correct = super().loss(weights, batch, rows)
        if batch.shape.rank == 2:
            return correct
        match self.bug:
            case "shared":  # every client gets the mean of all clients' losses
                return correct._replace(total=tf.reduce_mean(correct.total) * tf.ones_like(correct.total))
            case "padding":  # rows of padding count, too
                everywhere = tf.reduce_mean(self.token_losses(weights, batch), [-2, -1])
                return Loss(everywhere * tf.cast(tf.shape(batch)[1] * 5, tf.float32), correct.count)
            case "not finite":
                return correct._replace(total=correct.total / tf.cast(rows, tf.float32))
        return correct


def test_why_not_stacked_returns_none_for_correct_task():
    assert why_not_stacked(LanguageModelling(bigram.token_losses, 5), bigram.initial_weights()) is None
    assert why_not_stacked(Wrong(bigram.token_losses, 5), bigram.initial_weights()) is None


@pytest.mark.parametrize("bug", ["shared", "padding", "not finite"])
def test_why_not_stacked_detects_planted_bug(bug):
    reason = why_not_stacked(Wrong(bigram.token_losses, 5, bug=bug), bigram.initial_weights())
    assert reason is not None and "a client's loss or gradient changes" in reason


def test_why_not_stacked_detects_loss_without_client_axis():
    reason = why_not_stacked(LanguageModelling(without_client_axis, 5), bigram.initial_weights())
    assert reason and "\n" not in reason

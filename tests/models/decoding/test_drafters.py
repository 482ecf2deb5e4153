import pytest
import tensorflow as tf

from models.decoding.drafters import Drafter, ModelDrafter
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from tests.models.decoding.drafter_tests import DrafterTests


class Repeat(Drafter):
    """The drafter of a user: it is certain that the last token comes again."""

    def initial_state(self, batch):
        return ()

    def step(self, tokens, state):
        return tf.math.log(tf.one_hot(tokens, 50)), state


class Trigram(Drafter):
    """A user's drafter with a nest of states of several ranks, and with `prefill` and `rewind` of the base class."""

    def initial_state(self, batch):
        return {"last": tf.zeros([batch, 2], tf.int32), "read": tf.zeros([batch])}

    def step(self, tokens, state):
        last = tf.stack([state["last"][:, 1], tokens], axis=1)
        score = tf.cast(tf.reduce_sum(last, axis=1), tf.float32) + state["read"]
        return tf.sin(score[:, tf.newaxis] * tf.range(1.0, 12.0)), {"last": last, "read": state["read"] + 1}


class TestRepeat(DrafterTests):
    size = 50

    @pytest.fixture
    def drafter(self):
        return Repeat()


class TestTrigram(DrafterTests):
    size = 11

    @pytest.fixture
    def drafter(self):
        return Trigram()


class TestRecurrentModel(DrafterTests):
    size = 11

    @pytest.fixture
    def drafter(self):
        model = RecurrentLanguageModel("cifg", 11, embedding=6, units=8)
        return ModelDrafter(model, model.init(0))


class TestTransformerModel(DrafterTests):
    size = 11

    @pytest.fixture
    def drafter(self):
        model = TransformerLanguageModel(11, embedding=8, blocks=1, heads=2, feed_forward=12, context=24)
        return ModelDrafter(model, model.init(0))

import pytest
import tensorflow as tf

from models.decoding import tree_rows
from models.decoding.drafters import Drafter, ModelDrafter
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from tests.models.decoding.drafter_tests import SLOW_BATCHES, DrafterTests


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


class Stale(Trigram):
    """Planted: takes all tokens back instead of some."""

    def rewind(self, states, kept):
        return states[0]


class Careless(Trigram):
    """Planted: reads the padding of a prompt."""

    def prefill(self, tokens, lengths, state):
        return super().prefill(tokens, tf.fill(lengths.shape, tokens.shape[1]), state)


class Leaking(Trigram):
    """Planted: the logits of a row depend on the other rows."""

    def step(self, tokens, state):
        logits, new = super().step(tokens, state)
        return logits + tf.reduce_mean(logits), new


class Late(Trigram):
    """Planted: the state lags one token behind."""

    def step(self, tokens, state):
        _, new = super().step(tokens, state)
        return super().step(state["last"][:, 1], state)[0], new

    def prefill(self, tokens, lengths, state):
        return super().prefill(tokens, tf.maximum(lengths - 1, 0), state)


class Above(Trigram):
    """Planted: the states after a depth of a tree are those before it."""

    def step_level(self, tokens, trail, tree, level):
        logits, states = super().step_level(tokens, trail, tree, level)
        return logits, [*states[:-1], tree_rows.repeat(states[-2], tokens.shape[0], tree, level)]


class Behind(Trigram):
    """Planted: the state is that after the parent of the node that is kept."""

    def rewind_tree(self, trail, kept, tree):
        return super().rewind_tree(trail, tf.gather([0, *(parent + 1 for parent in tree.parents)], kept), tree)


@pytest.mark.parametrize(
    ("drafter", "test"),
    [
        (Stale(), DrafterTests.test_rewind_equals_reading_only_the_kept_tokens),
        (Careless(), DrafterTests.test_prefill_equals_reading_each_row_alone_token_by_token),
        (Careless(), DrafterTests.test_prefill_of_no_token_keeps_the_state),
        (Leaking(), DrafterTests.test_a_row_does_not_depend_on_the_other_rows),
        (Late(), DrafterTests.test_prefill_in_ragged_parts_equals_prefill_at_once),
        (Above(), DrafterTests.test_step_level_reads_a_tree_as_step_reads_the_path_to_each_node),
        (Behind(), DrafterTests.test_rewind_tree_goes_on_after_each_node_as_after_the_same_tokens),
    ],
)
def test_a_planted_fault_of_a_drafter_is_found(drafter, test):
    with pytest.raises(AssertionError):
        test(TestTrigram(), drafter)


class TestRepeat(DrafterTests):
    size = 50

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

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

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

    @pytest.fixture
    def drafter(self):
        model = RecurrentLanguageModel("cifg", 11, embedding=6, units=8)
        return ModelDrafter(model, model.init(0))


class TestTransformerModel(DrafterTests):
    size = 11

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

    @pytest.fixture
    def drafter(self):
        model = TransformerLanguageModel(11, embedding=8, blocks=1, heads=2, feed_forward=12, context=24)
        return ModelDrafter(model, model.init(0))

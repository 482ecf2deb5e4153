"""One block drafts and decides as it should with silent drafters and a host's masks; unfit options are refused."""

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.choices import Processing
from models.decoding.drafters import Drafter
from models.decoding.methods import build_method
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.speculation import Speculation
from tests.models.decoding.runs import SIZE, TARGET, drafter_logits, request, reset_tables, rows, speculation, start
from tests.oracles.speculation import Row

PROMPTS = [[3, 1, 4], [5]]


class Silent(Drafter):
    """Proposes nothing, although it says that it always proposes."""

    def initial_state(self, batch):
        return tf.zeros([batch])

    def step(self, tokens, state):
        return tf.fill([tokens.shape[0], SIZE], -np.inf), state


@pytest.mark.parametrize("processing", [Processing(), Processing(top_k=3), Processing(temperature=0.0)])
def test_a_drafter_whose_logits_are_all_minus_infinity_drafts_nothing(processing):
    drafter = Silent()
    assert not drafter.may_pass
    own = Speculation(TARGET, {}, build_method("block"), drafter, 2)
    asked = request(3, [1, 2], processing)
    state = start(PROMPTS, own).state
    words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
    np.testing.assert_array_equal(own.draft(state, asked, words).lengths, [0, 0])
    block, _ = own.block(state, asked, words, tf.constant([True, True]))
    np.testing.assert_array_equal(block.count, [1, 1])
    assert np.all(np.isfinite(block.log_probs))


MASKED = {
    "no bias": request(5, [1, 2])._replace(bias=(), is_plain=()),
    "plain": request(5, [1, 2]),
    "bias and penalty": request(
        5, [1, 2], Processing(frequency_penalty=0.5), np.random.default_rng(6).normal(0, 2, [2, SIZE])
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_host_masks_apply_at_every_prefix_of_a_draft(name):
    """A grammar in which no token comes twice in a row; drafts break it, the text is that of a masked target."""
    own, asked = speculation("block", 3), MASKED[name]
    reset_tables()
    state = start([[4], [6]], own).state
    given = [[4], [6]]
    for _ in range(6):
        words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
        draft = own.draft(state, asked, words)
        allowed = np.ones([2, 4, SIZE], bool)
        for row, text in enumerate(given):
            allowed[row, np.arange(4), [text[-1], *draft.tokens[row].numpy()]] = False
        block, state = own.verify(state, draft, asked, tf.constant([True, True]), tf.constant(allowed))
        for text, more in zip(given, rows(block.tokens, block.count), strict=True):
            text += more

    def masked(text):
        return np.where(np.arange(SIZE) == text[-1], np.float32(LEFT_OUT), TARGET.logits(text))

    for row, text in enumerate(given):
        bias = None if isinstance(asked.bias, tuple) else asked.bias[row].numpy()
        processing = Processing(*(option.numpy() for option in asked.processing))
        plain = Row(masked, drafter_logits("near"), text[:1], "block", 3, 5, row + 1, processing, bias)
        found = plain.run(max_new=len(text) - 1)
        assert found.least > 1e-7 and text[1:] == found.tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft_length": -1}, "draft_length = -1: must be an integer >= 0"),
        ({"draft_length": True}, "draft_length = True: must be an integer >= 0"),
        ({"draft_length": 2}, "draft_length = 2: must be above 0 with a drafter, and 0 without one"),
        ({"drafter": "near"}, "draft_length = 0: must be above 0 with a drafter, and 0 without one"),
    ],
)
def test_draft_lengths_that_do_not_fit_the_drafter_are_refused(arguments, message):
    if "drafter" in arguments:
        arguments = {"drafter": speculation("block", 3).drafter}
    with pytest.raises(ValueError, match=f"^{message}$"):
        Speculation(TARGET, {}, build_method("block"), **arguments)


def test_automatic_draft_lengths_are_refused_for_a_method_that_carries_something():
    drafter = speculation("block", 3).drafter
    with pytest.raises(ValueError, match="^draft_length = 'auto': the decoding carries something") as caught:
        Speculation(TARGET, {}, build_method("greedy-block"), drafter, 3, automatic=True)
    assert "\n" not in str(caught.value)

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.lookup_drafter import LookupDrafter
from tests.models.decoding.drafter_tests import DrafterTests
from tests.oracles.lookup import proposal

SIZE = 4


class TestLookupDrafter(DrafterTests):
    size = SIZE

    @pytest.fixture
    def drafter(self):
        return LookupDrafter(SIZE, context=9, longest=3)


def proposed(drafter, text):
    """Returns the proposed token after a text, or None."""
    state = drafter.prefill(tf.constant([text[:-1]], tf.int32), tf.constant([len(text) - 1]), drafter.initial_state(1))
    logits = drafter.step(tf.constant(text[-1:], tf.int32), state)[0][0].numpy()
    assert set(logits) <= {0.0, -np.inf} and (logits == 0).sum() <= 1
    return int(np.argmax(logits)) if (logits == 0).any() else None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    text=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=14),
    context=st.integers(2, 16),
    lengths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_proposal_is_that_of_the_slices_in_the_last_tokens(text, context, lengths):
    longest = min(max(lengths), context - 1)
    shortest = min(min(lengths), longest)
    drafter = LookupDrafter(SIZE, context, longest, shortest)
    assert proposed(drafter, text) == proposal(text[-context:], longest, shortest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 1, 2], 3),
        ([1, 2, 3, 0, 2, 1, 1, 2], 3),  # two tokens match before one does, though the one is more recent
        ([1, 2, 1, 3, 1], 3),  # the more recent of two
        ([1, 1], 1),
        ([1], None),
        ([0, 1, 2], None),
        ([0, 1, 0], 1),  # id 0 is a token
    ],
)
def test_proposal_of_plain_cases(text, expected):
    assert proposed(LookupDrafter(SIZE, 12), text) == expected == proposal(text, 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size = 0: must be an integer >= 1"),
        ({"context": 1}, "context = 1: must be an integer >= 2"),
        ({"context": float("nan")}, "context = nan: must be an integer >= 2"),
        ({"longest": 9}, "longest = 9: must be an integer from 1 to 8"),
        ({"longest": 0}, "longest = 0: must be an integer from 1 to 8"),
        ({"shortest": 4}, "shortest = 4: must be an integer from 1 to 3"),
        ({"shortest": True}, "shortest = True: must be an integer from 1 to 3"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LookupDrafter(**{"vocabulary_size": SIZE, "context": 9, **changes})

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.katz_drafter import KatzDrafter
from models.katz import learn
from tests.models.decoding.drafter_tests import SLOW_BATCHES, DrafterTests

SIZE = 9


def make_model(order):
    rows = np.minimum(1 + np.random.default_rng(0).geometric(0.3, (40, 12)), SIZE - 1)
    return learn(rows, SIZE, order)


class TestKatzDrafter(DrafterTests):
    size = SIZE

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

    @pytest.fixture
    def drafter(self):
        return KatzDrafter(make_model(3))


@pytest.mark.parametrize("order", [1, 3, 5])
def test_logits_are_those_of_the_model_after_every_context(order):
    model = make_model(order)
    drafter = KatzDrafter(model)
    texts = np.random.default_rng(1).integers(0, SIZE, (2, 20)).astype(np.int32)
    state = drafter.initial_state(2)
    for end in range(1, 21):
        logits, state = drafter.step(tf.constant(texts[:, end - 1]), state)
        np.testing.assert_allclose(logits, [np.log(model.probabilities(text[:end])) for text in texts], atol=2e-6)


def test_deployed_drafter_proposes_the_same():
    drafter = KatzDrafter(make_model(3))
    deployed = drafter.deploy(16, tf.Variable, is_int8=True)
    for token in range(SIZE):
        expected, found = (one.step(tf.constant([token]), one.initial_state(1))[0] for one in (drafter, deployed))
        np.testing.assert_array_equal(found, expected)

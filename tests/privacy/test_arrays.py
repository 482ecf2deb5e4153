import numpy as np
import pytest

from privacy import dp_mean, dp_quantile
from privacy.arrays import as_floats
from privacy.linear import LinearDPSGD
from privacy.linear.features import centre_of_ball
from privacy.noise.randomness import SecureRandomness


def one_by_one():
    yield 1.0


class Dataset:
    """Is read as a `tf.data.Dataset` is."""

    def __iter__(self):
        return one_by_one()


@pytest.mark.parametrize(
    "values", [one_by_one(), Dataset(), {1.0, 2.0}, {"a": 1.0}, {"a": 1.0}.values(), map(float, [1])]
)
@pytest.mark.parametrize("call", [dp_mean, dp_quantile])
def test_what_is_no_array_is_refused_with_the_way_to_make_one(call, values):
    arguments = {"quantile": 0.5, "resolution": 1.0} if call is dp_quantile else {}
    with pytest.raises(
        ValueError, match=r"^values has type \w+, which is no array: .* np.array\(list\(values\)\)"
    ) as caught:
        call(values, lower=0, upper=5, epsilon=1.0, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[1, 2], (1, 2), range(1, 3), np.array([1, 2])])
def test_arrays_and_sequences_are_taken(values):
    assert as_floats("values", values).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["features", "labels"])
def test_linear_training_refuses_what_is_no_array(name):
    given = {"features": np.ones((2, 2)), "labels": np.array([0, 1]), name: one_by_one()}
    training = LinearDPSGD(1, 1.0, 2.0, 1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match=f"^{name} has type generator, which is no array"):
        training.train(given["features"], given["labels"], 2, np.random.default_rng(0))


def test_private_features_refuse_what_is_no_array():
    with pytest.raises(ValueError, match="^features has type generator, which is no array"):
        centre_of_ball(one_by_one(), 1.0, 1.0, SecureRandomness())

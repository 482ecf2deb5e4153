import numpy as np
import pytest
from scipy import sparse

from privacy import dp_mean, dp_quantile
from privacy.arrays import as_floats
from privacy.linear import LinearDPSGD
from privacy.linear.features import centre_of_ball
from privacy.noise.randomness import SecureRandomness


def generate_values():
    yield 1.0


class Dataset:
    """An object that can only be iterated, as a `tf.data.Dataset`."""

    def __iter__(self):
        return generate_values()


@pytest.mark.parametrize(
    "values", [generate_values(), Dataset(), {1.0, 2.0}, {"a": 1.0}, {"a": 1.0}.values(), map(float, [1])]
)
@pytest.mark.parametrize("call", [dp_mean, dp_quantile])
def test_private_statistics_refuse_iterables_and_say_how_to_make_an_array(call, values):
    arguments = {"quantile": 0.5, "resolution": 1.0} if call is dp_quantile else {}
    with pytest.raises(
        ValueError, match=r"^values has type \w+, which is not an array: .* np.array\(list\(values\)\)"
    ) as caught:
        call(values, lower=0, upper=5, epsilon=1.0, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[1, 2], (1, 2), range(1, 3), np.array([1, 2])])
def test_as_floats_accepts_arrays_and_sequences(values):
    assert as_floats("values", values).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["features", "labels"])
def test_linear_dpsgd_refuses_generators(name):
    arguments = {"features": np.ones((2, 2)), "labels": np.array([0, 1]), name: generate_values()}
    training = LinearDPSGD(1, 1.0, 2.0, 1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match=f"^{name} has type generator, which is not an array"):
        training.train(arguments["features"], arguments["labels"], 2, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_all_that_take_arrays_refuse_ragged_rows_and_sparse_matrices(kind):
    values = [[1.0, 2.0], [3.0]] if kind == "ragged" else sparse.eye(2).tocsr()
    message = r"not a rectangular array: .*; pad" if kind == "ragged" else r"type csr_matrix, .* give \w+\.toarray\(\)"
    training = LinearDPSGD(1, 1.0, 2.0, 1.0, 0.0, 0.5)
    calls = {
        "values": lambda: as_floats("values", values),
        "features": lambda: training.train(values, np.array([0, 1]), 2, np.random.default_rng(0)),
        "labels": lambda: training.train(np.eye(2), values, 2, np.random.default_rng(0)),
    }
    for name, call in [*calls.items(), ("features", lambda: centre_of_ball(values, 1.0, 1.0, SecureRandomness()))]:
        with pytest.raises(ValueError, match=f"^{name} (is|has) {message}") as error:
            call()
        assert "\n" not in str(error.value)


def test_centre_of_ball_refuses_generators():
    with pytest.raises(ValueError, match="^features has type generator, which is not an array"):
        centre_of_ball(generate_values(), 1.0, 1.0, SecureRandomness())

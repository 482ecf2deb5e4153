import numpy as np
import tensorflow as tf

from models.tensors import clip, shape_of, to_tensors
from tests.oracles.backends import convert


def test_shape_of_gives_integers_where_the_size_is_known_and_tensors_elsewhere():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)], autograph=False)
    def rows(x):
        seen.append(shape_of(x))
        return seen[0][0]

    assert int(rows(tf.zeros([5, 3]))) == 5
    assert isinstance(seen[0][0], tf.Tensor) and seen[0][1] == 3
    assert shape_of(tf.zeros([2, 4])) == [2, 4]


def test_to_tensors_keeps_names_and_values():
    found = to_tensors({"a": np.arange(3.0)})
    assert list(found) == ["a"] and isinstance(found["a"], tf.Tensor)
    np.testing.assert_array_equal(found["a"], np.arange(3.0))


def test_clip_of_integers_converts_to_tflite_with_every_limit():
    """A draft of 6 tokens clips by 0 and 6, which a converter may take for ReLU6, and one of 7 by 0 and 7."""
    values = np.array([-3, 0, 4, 5, 6, 7, 9], np.int32)
    limits = (1, 5, 6, 7)

    def cut(x):
        return {f"to_{limit}": clip(x, 0, limit) for limit in limits}

    found = convert(cut, {"x": tf.TensorSpec(values.shape, tf.int32, "x")})(x=values)
    for limit in limits:
        np.testing.assert_array_equal(found[f"to_{limit}"], np.clip(values, 0, limit))

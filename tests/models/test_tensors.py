import numpy as np
import tensorflow as tf

from models.tensors import shape_of, to_tensors


def test_shape_of_gives_integers_where_the_size_is_known_and_tensors_elsewhere():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
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

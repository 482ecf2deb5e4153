"""Both ways to write a cache write the same."""

import numpy as np
import pytest
import tensorflow as tf

from models.transformer.cache import write, writing_in_place


@pytest.mark.parametrize("axis", [2, 3])
def test_rows_in_turn_and_all_rows_at_once_write_the_same(axis):
    rows, length = 6, tf.constant([0, 3, 5, 1, 2, 4])
    generator = np.random.default_rng(0)
    shapes = {2: ([rows, 2, 8, 3], [rows, 2, 3, 3]), 3: ([rows, 2, 3, 8], [rows, 2, 3, 3])}[axis]
    cached, new = (tf.constant(generator.standard_normal(shape), tf.float32) for shape in shapes)
    at_once = write(cached, new, length, axis)
    with writing_in_place():
        in_turn = write(cached, new, length, axis)
    np.testing.assert_array_equal(in_turn, at_once)
    assert not np.array_equal(at_once, cached)

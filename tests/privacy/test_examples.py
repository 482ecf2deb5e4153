import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from privacy import KerasDPSGD  # noqa: E402

X, Y = np.ones((8, 3), np.float32), np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("x", "y", "name"),
    [
        (tf.data.Dataset.from_tensor_slices(X), Y, "x"),
        ((row for row in X), Y, "x"),
        (X, (label for label in Y), "y"),
        ([X, (row for row in X)], Y, r"x\[1\]"),
        (X, tf.data.Dataset.from_tensor_slices(Y), "y"),
    ],
    ids=["dataset", "generator of x", "generator of y", "generator in a list", "dataset of y"],
)
def test_fit_refuses_iterables_and_says_how_to_make_an_array(x, y, name):
    with pytest.raises(
        ValueError, match=rf"^{name} has type \w+, which is not an array: .*as_numpy_iterator"
    ) as caught:
        KerasDPSGD(8, 2, 1, 1.0, 1.0, 1e-5).fit(None, x, y)
    assert "\n" not in str(caught.value)

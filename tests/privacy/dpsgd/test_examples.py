"""Tests what `KerasDPSGD.fit` says of data that is not arrays."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

from privacy import Budget, Releases
from privacy.dpsgd.examples import checked_examples
from tests.privacy.dpsgd.keras_training import compiled, examples, settings


class Batches(keras.utils.Sequence):
    """The examples in two batches."""

    __iter__ = None  # not every version of Keras can iterate over a Sequence

    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = examples()
        return x[10 * index : 10 * index + 10], y[10 * index : 10 * index + 10]


def dataset():
    return tf.data.Dataset.from_tensor_slices(examples()).batch(7)


def generate_batches():
    yield from (Batches()[index] for index in range(2))


@pytest.mark.parametrize("build", [dataset, generate_batches, Batches])
@pytest.mark.parametrize("argument", ["x", "validation_data"])
def test_fit_refuses_batches_with_a_line_that_makes_arrays_of_them(build, argument, tmp_path):
    batches = build()
    data = (batches,) if argument == "x" else examples()
    others = {} if argument == "x" else {"validation_data": batches}
    with Releases.open(tmp_path / "ledger.jsonl", Budget(epsilon=1e6, delta=1e-5)) as ledger:
        with pytest.raises(ValueError, match=type(batches).__name__) as error:
            settings().fit(compiled(), *data, ledger=ledger, **others)
        assert ledger.releases == []
    message = str(error.value)
    assert "\n" not in message
    line = message.partition(" by x, y = ")[2]
    x, y = eval(line, {"np": np, argument: batches})
    np.testing.assert_array_equal(x, examples()[0])
    np.testing.assert_array_equal(y, examples()[1])


def test_fit_without_labels_says_that_they_are_missing():
    x, y = examples()
    for data in (x, (x, y), x.tolist(), tf.constant(x), {"a": x}):
        with pytest.raises(ValueError, match="^y is missing: give the labels"):
            settings().fit(compiled(), data)


Y = np.array([0, 1])
ROWS = [[1.0, 2.0], [3.0]]
OTHERS = {
    "ragged": (tf.ragged.constant(ROWS), Y, r"^x has type RaggedTensor, .*: give x.to_tensor\(\)"),
    "ragged labels": (np.eye(2), tf.ragged.constant(ROWS), r"^y has type RaggedTensor, .*: give y.to_tensor\(\)"),
    "one of two": ([np.eye(2), tf.ragged.constant(ROWS)], Y, r"^x\[1\] has type RaggedTensor"),
    "sparse": (tf.sparse.eye(2), Y, r"^x has type SparseTensor, .*: give tf.sparse.to_dense\(x\)"),
    "matrix": (sparse.eye(2).tocsr(), Y, r"^x has type csr_matrix, .*: give x.toarray\(\)"),
    "sequence": (Batches(), Y, "^x has type Batches, .*: give x and y as arrays"),
    "uneven": (ROWS, Y, "^x is not a rectangular array: .*; pad short rows, or leave them out"),
    "uneven labels": (np.eye(2), ROWS, "^y is not a rectangular array"),
    "uneven in a dict": ({"a": ROWS, "b": np.eye(2)}, Y, r"^x\['a'\] is not a rectangular array"),
    "uneven in a list": ([np.eye(2), ROWS], Y, r"^x\[1\] is not a rectangular array"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_data_that_is_no_array_is_refused_with_the_fix(name):
    x, y, message = OTHERS[name]
    with pytest.raises(ValueError, match=message) as error:
        checked_examples(x, y)
    assert "\n" not in str(error.value)


def test_lists_of_rows_are_accepted_wherever_an_array_is():
    rows = np.eye(2)
    for x in (rows.tolist(), {"a": rows.tolist(), "b": rows}, [rows, rows.tolist()], (rows, rows.tolist())):
        for part in tf.nest.flatten(checked_examples(x, [0, 1]).x):
            np.testing.assert_array_equal(part, rows)

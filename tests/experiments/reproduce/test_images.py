import gzip
import struct

import numpy as np
import pytest

from experiments.reproduce import images


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder with the four files of a data set in MNIST's format, two of them gzipped."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = generator.integers(0, 256, (count, 2, 3), np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return tmp_path


def test_fashion_mnist_reads_idx_files_and_splits_training_images(folder):
    sets = images.fashion_mnist(folder)
    assert [x.shape for x, _ in sets] == [(10, 6), (2, 6), (4, 6)]
    assert sets.train[0].dtype == np.float32 and 0 <= sets.train[0].min() and sets.train[0].max() <= 1
    assert sets.train[1].tolist() == list(range(10)) and sets.validation[1].tolist() == [10, 11]
    whole = images.read_idx(folder / "train-images-idx3-ubyte.gz")
    np.testing.assert_allclose(sets.train[0], whole[:10].reshape(10, 6) / 255, atol=1e-7)


def test_missing_or_damaged_file_is_refused_with_the_fix(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no t10k-labels-idx1-ubyte.gz: apt install dataset-fashion-mnist"):
        images.fashion_mnist(folder)
    for content, message in (
        (b"", "is not an IDX file of bytes"),
        (b"\0\0\x0d\x01" + bytes(8), "is not an IDX file of bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "has 5 bytes of data, but its header says 6: download the file again"),
    ):
        (folder / "bad").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            images.read_idx(folder / "bad")


def test_digits_have_a_fixed_split_per_seed():
    sets = images.digits()
    assert [len(y) for _, y in sets] == [1197, 240, 360]
    assert all(0 <= x.min() and x.max() <= 1 for x, _ in sets)
    np.testing.assert_array_equal(sets.test[1], images.digits().test[1])
    assert not np.array_equal(sets.test[1], images.digits(1).test[1])

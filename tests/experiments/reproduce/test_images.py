import gzip
import struct

import numpy as np
import pytest

from experiments.reproduce import images


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """The four files: two of them gzipped."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = generator.integers(0, 256, (count, 2, 3), np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return tmp_path


def test_a_folder_of_idx_files(folder):
    found = images.fashion_mnist(folder)
    assert [x.shape for x, _ in found] == [(10, 6), (2, 6), (4, 6)]
    assert found.train[0].dtype == np.float32 and 0 <= found.train[0].min() and found.train[0].max() <= 1
    assert found.train[1].tolist() == list(range(10)) and found.validation[1].tolist() == [10, 11]
    whole = images.read_idx(folder / "train-images-idx3-ubyte.gz")
    np.testing.assert_allclose(found.train[0], whole[:10].reshape(10, 6) / 255, atol=1e-7)


def test_a_missing_or_damaged_file_is_one_line(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no t10k-labels-idx1-ubyte.gz: apt install dataset-fashion-mnist"):
        images.fashion_mnist(folder)
    for content, message in (
        (b"", "is no IDX file of bytes"),
        (b"\0\0\x0d\x01" + bytes(8), "is no IDX file of bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "holds 5 bytes and promises 6: it is cut short"),
    ):
        (folder / "bad").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            images.read_idx(folder / "bad")


def test_digits_are_split_the_same_way_every_time():
    found = images.digits()
    assert [len(y) for _, y in found] == [1197, 240, 360]
    assert all(0 <= x.min() and x.max() <= 1 for x, _ in found)
    np.testing.assert_array_equal(found.test[1], images.digits().test[1])
    assert not np.array_equal(found.test[1], images.digits(1).test[1])

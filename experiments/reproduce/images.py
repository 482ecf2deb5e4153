"""Reads the labelled images for the studies on linear models: Fashion-MNIST (IDX files) and scikit-learn's digits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""


class Images(NamedTuple):
    """Holds images for training, validation and test.

    Each set is a pair: pixels float32 [n, pixels] in [0, 1], and labels int64 [n].
    """

    train: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
    test: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def fashion_mnist(folder: Path = DEBIAN) -> Images:
    """Reads Fashion-MNIST or another data set in MNIST's format.

    Args:
      folder: folder with the four files, which have MNIST's names and may be gzipped. The last sixth of the training
        images becomes the validation set.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is not an IDX file of bytes, or is cut short.
    """
    pixels, labels = (read_idx(_find(folder, f"train-{kind}")) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    test, test_labels = (read_idx(_find(folder, f"t10k-{kind}")) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    kept = len(pixels) - len(pixels) // 6
    return Images(
        _scaled(pixels[:kept], labels[:kept], 255),
        _scaled(pixels[kept:], labels[kept:], 255),
        _scaled(test, test_labels, 255),
    )


def digits(seed: int = 0) -> Images:
    """Loads scikit-learn's 1,797 digits of 8 x 8 pixels: 1,197 for training, 240 for validation, 360 for test.

    Args:
      seed: seed of the split.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(pixels))
    train, validation, test = np.split(order, [1197, 1437])
    return Images(*(_scaled(pixels[part], labels[part], 16) for part in (train, validation, test)))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an IDX file of bytes, gzipped or not.

    The format is: two zero bytes, the byte 8, the number of dimensions (one byte), their sizes (big-endian uint32), and
    the data.

    Raises:
      ValueError: the file has another format, or its data has another size than its header says.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08" or not content[3]:
        raise ValueError(f"{path} is not an IDX file of bytes: give the files of MNIST or Fashion-MNIST")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if data.size != np.prod(shape):
        raise ValueError(
            f"{path} has {data.size} bytes of data, but its header says {np.prod(shape)}: download the file again"
        )
    return data.reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"--images {folder} holds no {name}.gz: apt install dataset-fashion-mnist, or name a folder with MNIST's files"
    )


def _scaled(
    pixels: npt.NDArray[Any], labels: npt.NDArray[Any], largest: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    return (pixels.reshape(len(pixels), -1) / largest).astype(np.float32), labels.astype(np.int64)

"""Defines the workloads of `fedspeak bench simulation` and writes each into one file that every framework reads.

Data and weights are drawn from seeds; text is Shakespeare's plays. Weights are float32 arrays by name in Keras'
layouts: kernels [in, out], convolutions [height, width, in, out], LSTM gates in the order i, f, g, o.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.bench.peers.common import Settings

Weights = dict[str, np.ndarray]
Examples = tuple[np.ndarray, np.ndarray | None]  # x and y of one client; text has no y

_TOKENS = 20  # predicted tokens per line
_BOS, _EOS, _UNKNOWN, _FIRST_WORD = 1, 2, 3, 4
# The gradients of ReLU, max-pooling and the scale-invariant activations are discontinuous: they jump where the sign of
# an entry, or the order of two entries, changes. A rounding error that causes one such jump changes a client's update
# by about 4e-3, and every later round amplifies the differences: trained with two of JAX's compilers, the CNN's weights
# differ by 1.3e-2 after three rounds. So these models are compared after one round, with this larger tolerance.
_DISCONTINUOUS_TOLERANCE = 2e-3
_WORD = re.compile(r"[a-z']+|[.,;:!?-]")


@dataclass(frozen=True)
class Recipe:
    """Describes how a workload is made.

    Attributes:
      about: description for the table, one line.
      unit: name of the examples, in the plural.
      settings: settings of local training.
      cohort: number of clients per round.
      population: number of clients in the file; each round draws its clients without replacement.
      weights: draws the initial weights.
      clients: draws the examples of a given number of clients.
      tolerance: largest accepted difference between the weights of two frameworks, relative to the distance that
        training moved them.
    """

    about: str
    unit: str
    settings: Settings
    cohort: int
    population: int
    weights: Callable[[np.random.Generator], Weights]
    clients: Callable[[int, np.random.Generator], list[Examples]]
    tolerance: float = 1e-4

    def write(self, path: Path, rounds: int) -> None:
        """Writes the workload's file; equal numbers of rounds give equal arrays.

        Args:
          path: the `.npz` file; `experiments.bench.peers.common` describes its arrays.
          rounds: number of rounds for which cohorts are drawn.
        """
        generator = np.random.default_rng(20)
        weights = self.weights(generator)
        clients = self.clients(self.population, generator)
        cohorts = np.stack([generator.permutation(self.population)[: self.cohort] for _ in range(rounds)])
        arrays = {f"weight/{name}": value.astype(np.float32) for name, value in weights.items()}
        arrays["x"] = np.concatenate([x for x, _ in clients])
        labels = [y for _, y in clients if y is not None]
        if labels:
            arrays["y"] = np.concatenate(labels)
        arrays["offsets"] = np.cumsum([0, *(len(x) for x, _ in clients)])
        arrays["cohorts"] = cohorts
        arrays["settings"] = np.array(json.dumps(asdict(self.settings)))
        np.savez(path, **arrays)  # type: ignore[arg-type]


def _lines(vocabulary: int, shortest: int, longest: int) -> Callable[[int, np.random.Generator], list[Examples]]:
    """Returns a function that draws speakers with at least `shortest` lines and takes their first `longest` lines."""

    def clients(number: int, generator: np.random.Generator) -> list[Examples]:
        from fl.sources import shakespeare

        speakers = {name: [_WORD.findall(line.lower()) for line in lines] for name, lines in shakespeare.load()}
        counts = Counter(word for lines in speakers.values() for line in lines for word in line)
        # Words with equal counts are sorted alphabetically, so that the vocabulary is the same in every process.
        common = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - _FIRST_WORD]
        ids = {word: index + _FIRST_WORD for index, word in enumerate(common)}
        names = sorted(name for name, lines in speakers.items() if len(lines) >= shortest)
        sample = [names[index] for index in generator.permutation(len(names))[:number]]
        return [(_encode(speakers[name][:longest], ids), None) for name in sample]

    return clients


def _encode(lines: list[list[str]], ids: dict[str, int]) -> np.ndarray:
    """Encodes lines of words as rows of tokens, padded with 0, int32 [lines, T+1]."""
    rows = np.zeros((len(lines), _TOKENS + 1), np.int32)
    for row, words in zip(rows, lines, strict=True):
        line = [_BOS, *(ids.get(word, _UNKNOWN) for word in words), _EOS][: _TOKENS + 1]
        row[: len(line)] = line
    return rows


def _images(number: int, generator: np.random.Generator) -> list[Examples]:
    """Draws 100 images of 62 classes for each client: the pattern of the class plus noise, with mean 0."""
    patterns = generator.standard_normal((62, 28, 28, 1), np.float32)
    labels = generator.integers(62, size=(number, 100)).astype(np.int32)
    return [(0.5 * patterns[y] + 0.5 * generator.standard_normal((len(y), 28, 28, 1), np.float32), y) for y in labels]


def _vectors(number: int, generator: np.random.Generator) -> list[Examples]:
    """Draws 20 to 60 vectors of 10 classes for each client."""
    centres = generator.standard_normal((10, 64), np.float32)
    clients: list[Examples] = []
    for size in generator.integers(20, 61, number):
        y = generator.integers(10, size=size).astype(np.int32)
        clients.append((centres[y] + generator.standard_normal((size, 64), np.float32), y))
    return clients


def _glorot(generator: np.random.Generator, *shape: int) -> np.ndarray:
    field = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (field * (shape[-2] + shape[-1])))
    return generator.uniform(-limit, limit, shape)


def _lstm_weights(generator: np.random.Generator) -> Weights:
    vocabulary, embedding, units = 4000, 96, 256
    bias = np.zeros(4 * units)
    bias[units : 2 * units] = 1  # the bias of the forget gate, as in Keras
    return {
        "embedding": generator.uniform(-0.05, 0.05, (vocabulary, embedding)),
        "kernel": _glorot(generator, embedding, 4 * units),
        "recurrent_kernel": _glorot(generator, units, 4 * units),
        "bias": bias,
        "projection_kernel": _glorot(generator, units, embedding),
        "projection_bias": np.zeros(embedding),
        "output_kernel": _glorot(generator, embedding, vocabulary),
        "output_bias": np.zeros(vocabulary),
    }


def _cnn_weights(generator: np.random.Generator) -> Weights:
    return {
        "first_kernel": _glorot(generator, 5, 5, 1, 16),
        "first_bias": np.zeros(16),
        "second_kernel": _glorot(generator, 5, 5, 16, 32),
        "second_bias": np.zeros(32),
        "output_kernel": _glorot(generator, 7 * 7 * 32, 62),
        "output_bias": np.zeros(62),
    }


def _logistic_weights(generator: np.random.Generator) -> Weights:
    return {"kernel": _glorot(generator, 64, 10), "bias": np.zeros(10)}


def _preset_weights(name: str, vocabulary: int) -> Callable[[np.random.Generator], Weights]:
    def weights(generator: np.random.Generator) -> Weights:
        from models import presets

        return presets.preset(name, vocabulary).init(int(generator.integers(2**31)))

    return weights


RECIPES = {
    "lstm": Recipe(
        "embedding 4000 × 96, LSTM 256, projection 96, output 4000 (1.2 M weights); 20 speakers of ≤ 128 lines",
        "lines",
        Settings("lstm", batch_size=16, learning_rate=0.5, clip=0.5, compared_after=3),
        cohort=20,
        population=200,
        weights=_lstm_weights,
        clients=_lines(4000, shortest=10, longest=128),
    ),
    "si-cifg-4.7m": Recipe(
        "the preset si-cifg-4.7m, V = 4000 (4.7 M weights, tied embedding); 4 speakers of ≤ 48 lines",
        "lines",
        Settings("si-cifg", batch_size=16, learning_rate=0.2, clip=0.5, compared_after=1),
        cohort=4,
        population=40,
        weights=_preset_weights("si-cifg-4.7m", 4000),
        clients=_lines(4000, shortest=10, longest=48),
        tolerance=_DISCONTINUOUS_TOLERANCE,
    ),
    "transformer-4m": Recipe(
        "the preset transformer-4m, V = 4000 (4.1 M weights, tied embedding); 4 speakers of ≤ 48 lines",
        "lines",
        Settings("transformer", batch_size=16, learning_rate=0.2, clip=0.5, compared_after=1),
        cohort=4,
        population=40,
        weights=_preset_weights("transformer-4m", 4000),
        clients=_lines(4000, shortest=10, longest=48),
        tolerance=_DISCONTINUOUS_TOLERANCE,
    ),
    "cnn": Recipe(
        "convolutions 5 × 5 × 16 and 5 × 5 × 32 with pooling, output 62 (0.11 M weights); 100 clients of 100 images",
        "images",
        Settings("cnn", batch_size=20, learning_rate=0.05, clip=0.5, compared_after=1),
        cohort=100,
        population=100,
        weights=_cnn_weights,
        clients=_images,
        tolerance=_DISCONTINUOUS_TOLERANCE,
    ),
    "logistic": Recipe(
        "softmax regression, 64 features, 10 classes; 100 clients of 20 to 60 vectors",
        "vectors",
        Settings("logistic", batch_size=10, learning_rate=0.1, clip=0.5, compared_after=3),
        cohort=100,
        population=300,
        weights=_logistic_weights,
        clients=_vectors,
    ),
    "tiny-recurrent": Recipe(
        "the preset tiny (SI-CIFG, E 96, H 192), V = 1024; 100 speakers of ≤ 16 lines",
        "lines",
        Settings("si-cifg", batch_size=8, learning_rate=0.5, clip=0.5, compared_after=1),
        cohort=100,
        population=400,
        weights=_preset_weights("tiny", 1024),
        clients=_lines(1024, shortest=2, longest=16),
        tolerance=_DISCONTINUOUS_TOLERANCE,
    ),
}

"""Is the exported file the trained model? Every export is asked at once."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models import device
from models.decoding import numpy_ops as host
from models.decoding.numpy_ops import Choices, Stream
from models.language_model import LanguageModel, Weights
from models.vocabulary import BOS

SEQUENCES = 50
# Most difference of a logit, as a part of the spread of the logits, before the file is called another model.
# Of trained models, float32 rounding gives 4e-7, float16 weights 2e-4, int8 weights 1e-2; another model gives
# 0.3 and more.
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "int8": 0.25}
# Rounding moves a draw across a boundary once in ten thousand tokens or so: see docs/export.md.
_LEAST_EQUAL = 0.9
_LENGTH = 32
# Logits are compared over short contexts: an untrained recurrence of some size is chaotic, and doubles the
# rounding of its weights every few tokens, in a file that is all right.
_COMPARED, _CONTEXT = 16, 8
_TIMINGS = 7


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the trained model, in one runtime.

    Attributes:
      path: of the file.
      precision: of its weights.
      bytes: its size.
      max_logit_error: largest difference of a logit, over contexts of up to 8 tokens, their first tokens read
        by `prefill` and the others by `decode`.
      logit_spread: largest minus smallest logit of the trained model over the same contexts.
      random_bits_equal: whether the random words inside the graph are those of NumPy.
      sequences: how many seeds were tried, with several prompts, temperatures and top-k.
      equal_to_model: how many token sequences of `generate` are those of the trained model.
      equal_to_stream: how many are those that the host draws from the file's own logits.
      tokens_per_second: median over repeats of `generate` in the graph, prefill left out, one thread.
      tokens_per_second_range: smallest and largest of the repeats.
      passed: what is promised holds: equal bits, equal streams, logits within the tolerance of the precision,
        and, for float32, at least nine of ten sequences equal to the trained model's.
    """

    path: str
    precision: str
    bytes: int
    max_logit_error: float
    logit_spread: float
    random_bits_equal: bool
    sequences: int
    equal_to_model: int
    equal_to_stream: int
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def check_parity(
    model: LanguageModel,
    weights: Weights,
    paths: Sequence[str | os.PathLike[str]],
    sequences: int = SEQUENCES,
) -> list[Parity]:
    """Compares each exported file with the model and the weights that it was exported from.

    The trained model is run by TensorFlow one token after the other, and its tokens are drawn in NumPy:
    nothing of the exported loop is in it.

    Raises:
      OSError, ValueError: a file cannot be loaded.
    """
    files = [device.load(path) for path in paths]
    prompt_limit = min(file.facts.max_prompt for file in files)
    length = min(_LENGTH, *(file.facts.max_new_tokens for file in files))
    reference = _Reference(model, weights)
    requests: list[tuple[list[int], Choices]] = []
    drawn: list[list[int]] = []
    for i in range(sequences):
        # Prompts of many lengths, in the model's own words; plain, sharpened and greedy draws.
        prompt = [BOS, *(drawn[-1] if drawn else [])][: 1 + i % prompt_limit]
        temperature, top_k = ((1.0, 0), (0.7, 40), (0.0, 0))[i % 3]
        choices = Choices(max_new_tokens=length, temperature=temperature, top_k=top_k, seed=i, request=i % 2)
        requests.append((prompt, choices))
        drawn.append(list(reference.draw(prompt, choices)))
    texts = [
        (min(1 + i % _CONTEXT, prompt_limit), [*prompt, *tokens][:_CONTEXT])
        for i, ((prompt, _), tokens) in enumerate(zip(requests, drawn, strict=True))
    ][:_COMPARED]
    logits = [reference.logits(text)[by_prefill - 1 :] for by_prefill, text in texts]
    return [_compare(file, requests, drawn, texts, logits) for file in files]


class _Reference:
    """The trained model in TensorFlow, one token at a time."""

    def __init__(self, model: LanguageModel, weights: Weights) -> None:
        constants = {name: tf.constant(value) for name, value in weights.items()}

        @tf.function
        def step(token: tf.Tensor, state: Any) -> Any:
            logits, trail = model.extend(constants, token[tf.newaxis, tf.newaxis], state)
            return logits[0, 0], model.rewind(trail, tf.ones([1], tf.int32))

        self._step = step
        self._start = model.initial_state(1)

    def _next(self, token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
        logits, state = self._step(tf.constant(token), state)
        return logits.numpy(), state

    def _read(self, tokens: Sequence[int]) -> list[tuple[NDArray[np.float32], Any]]:
        outputs, state = [], self._start
        for token in tokens:
            logits, state = self._next(token, state)
            outputs.append((logits, state))
        return outputs

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """`[len(tokens), V]`, after each token."""
        return np.stack([logits for logits, _ in self._read(tokens)])

    def draw(self, prompt: Sequence[int], choices: Choices) -> list[int]:
        logits, state = self._read(prompt)[-1]
        return list(host.draw(self._next, logits, state, len(prompt), choices))


def _compare(
    file: device.DeviceModel,
    requests: list[tuple[list[int], Choices]],
    drawn: list[list[int]],
    texts: list[tuple[int, list[int]]],
    logits: list[NDArray[np.float32]],
) -> Parity:
    outputs = [file.draw_in_graph(prompt, choices) for prompt, choices in requests]
    tokens = [output["tokens"].tolist() for output in outputs]
    equal_to_model = sum(a == b for a, b in zip(tokens, drawn, strict=True))
    equal_to_stream = sum(
        list(file.draw(prompt, choices)) == a for (prompt, choices), a in zip(requests, tokens, strict=True)
    )
    bits_equal = all(
        _bits_equal(output, len(prompt), choices) for output, (prompt, choices) in zip(outputs, requests, strict=True)
    )
    error = max(
        float(np.abs(np.stack([row for row, _ in file.read(text, by_prefill)]) - expected).max())
        for (by_prefill, text), expected in zip(texts, logits, strict=True)
    )
    spread = float(max(rows.max() for rows in logits) - min(rows.min() for rows in logits))
    speeds = _tokens_per_second(file)
    precision = file.facts.precision
    return Parity(
        path=file.path,
        precision=precision,
        bytes=os.path.getsize(file.path),
        max_logit_error=error,
        logit_spread=spread,
        random_bits_equal=bits_equal,
        sequences=len(requests),
        equal_to_model=equal_to_model,
        equal_to_stream=equal_to_stream,
        tokens_per_second=float(np.median(speeds)),
        tokens_per_second_range=(min(speeds), max(speeds)),
        passed=bits_equal
        and error <= _TOLERANCE[precision] * spread
        and equal_to_stream == len(requests)
        and (precision != "float32" or equal_to_model >= _LEAST_EQUAL * len(requests)),
    )


def _bits_equal(output: dict[str, NDArray[Any]], position: int, choices: Choices) -> bool:
    positions = position + np.arange(len(output["word_0"]))
    words = host.random_words(host.seed_words(choices.seed), Stream.SAMPLE, choices.request, positions)
    return np.array_equal(output["word_0"], words[0]) and np.array_equal(output["word_1"], words[1])


def _tokens_per_second(file: device.DeviceModel) -> list[float]:
    """Of one token more in the graph: the time of all tokens less that of one, which holds the prefill."""
    longest = file.facts.max_new_tokens
    if longest == 1:
        return [1 / _seconds(file, 1) for _ in range(_TIMINGS)]
    # The least, so that a pause of the machine while the short run is timed cannot flatter the long one.
    one = min(_seconds(file, 1) for _ in range(_TIMINGS))
    return [(longest - 1) / max(_seconds(file, longest) - one, 1e-9) for _ in range(_TIMINGS)]


def _seconds(file: device.DeviceModel, tokens: int) -> float:
    begin = time.perf_counter()
    file.draw_in_graph([BOS], Choices(max_new_tokens=tokens))
    return time.perf_counter() - begin

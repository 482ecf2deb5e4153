"""Compares exported files with the trained model, as `fedspeak export` does for every file that it writes."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models import device
from models.decoding import numpy_loop, numpy_ops
from models.decoding.acceptance import Acceptance
from models.decoding.choices import Choices, Costs
from models.decoding.numpy_ops import Stream
from models.device_blocks import BlockDraw
from models.language_model import LanguageModel, Weights

SEQUENCES = 50
_DRAFTING_SEQUENCES = 12
# Largest difference between a logit of the file and the model's at which the file still passes, as a fraction of the
# logits' spread. For files of trained models the fraction is 4e-7 in float32 (rounding), 2e-4 with float16 weights and
# 1e-2 with int8 weights. For the file of another model it is 0.3 or more.
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "int8": 0.25}
# Smallest fraction of sequences that a float32 file must draw as the model does. It is below 1 because rounding changes
# about one draw in ten thousand; docs/export.md explains why.
_LEAST_EQUAL = 0.9
_LENGTH = 32
# Logits are compared over few, short contexts. A large untrained recurrence is chaotic and doubles rounding errors
# every few tokens, so that over long contexts even a correct file differs.
_CONTEXTS, _CONTEXT_LENGTH = 16, 8
_TIMINGS = 7


@dataclass(frozen=True)
class DraftingParity:
    """Describes how a decoding with a drafter compares with the file's own logits, token by token.

    Attributes:
      decoding: name of the decoding.
      sequences: number of requests compared.
      equal_to_blocks: number of requests for which the loop in the graph draws the tokens of a loop on the host, which
        calls the runtime block by block.
      max_log_prob_error: largest difference in nats between the log-probability that the file states for a token, and
        that from its logits after reading the text token by token. A wrong state after a rejected draft shows here.
      acceptance: what became of the drafts.
      tokens_per_second: as for `Parity`.
      tokens_per_second_range: as for `Parity`.
      passed: whether `equal_to_blocks` equals `sequences`, and the error is within the precision's tolerance.
    """

    decoding: str
    sequences: int
    equal_to_blocks: int
    max_log_prob_error: float
    acceptance: Acceptance
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    passed: bool


@dataclass(frozen=True)
class SamplesParity:
    """Describes how the texts that a file draws together compare with those that it draws one after another.

    Attributes:
      decoding: name of the decoding.
      texts: number of texts compared.
      equal: number of those that have the same tokens. The model may round otherwise for several texts at once.
      speedup: time for drawing them one after another, divided by the time for drawing them together.
      passed: whether at least nine tenths are equal.
    """

    decoding: str
    texts: int
    equal: int
    speedup: float
    passed: bool


@dataclass(frozen=True)
class Parity:
    """Describes how one exported file compares with the trained model, in one runtime.

    Attributes:
      path: path of the file.
      precision: weight precision of the file, one of `models.tflite_file.PRECISIONS`.
      bytes: size of the file in bytes.
      max_logit_error: largest absolute difference of a logit over contexts of up to 8 tokens. `prefill` reads the first
        tokens of a context, and `decode` the others.
      logit_spread: largest minus smallest logit of the trained model over the same contexts.
      random_bits_equal: whether the random words computed in the graph equal those of NumPy; None for a file without
        the loop of "autoregressive", whose words are not compared.
      sequences: number of requests compared, each with its own seed; prompts, temperatures and top-k vary.
      equal_to_model: number of requests for which `generate` draws the tokens of the trained model.
      equal_to_stream: number of requests for which `generate` draws the tokens that NumPy draws from the file's logits.
      tokens_per_second: speed of `generate` without the prompt, on one thread: the median of several measurements.
      tokens_per_second_range: smallest and largest of these measurements.
      drafting: how each decoding with a drafter compares with the file's own token-by-token logits.
      samples: how each decoding's texts that are drawn together compare; empty for a file that draws one at a time.
      passed: whether the file passes: `random_bits_equal` is not False, `equal_to_stream` equals `sequences`, and
        `max_logit_error` is within the precision's tolerance of `logit_spread`. In float32 `equal_to_model` must also
        be at least nine tenths of `sequences`. All of `drafting` and `samples` must pass.
    """

    path: str
    precision: str
    bytes: int
    max_logit_error: float
    logit_spread: float
    random_bits_equal: bool | None
    sequences: int
    equal_to_model: int
    equal_to_stream: int
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    drafting: tuple["DraftingParity", ...]
    samples: tuple["SamplesParity", ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes as a JSON-serialisable dict."""
        return asdict(self)


def check_parity(
    model: LanguageModel,
    weights: Weights,
    paths: Sequence[str | os.PathLike[str]],
    sequences: int = SEQUENCES,
) -> list[Parity]:
    """Compares each exported file with the model and the weights that it was exported from.

    As the reference, TensorFlow runs the trained model one token at a time and NumPy draws the tokens. The reference
    uses no part of the exported loop.

    Args:
      model: the language model.
      weights: the model's weights by name.
      paths: the exported files, at least one.
      sequences: number of requests to compare, >= 1.

    Returns:
      One comparison per file, in the order of `paths`.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file cannot be loaded.
    """
    files = [device.load(path) for path in paths]
    prompt_limit = min(file.facts.max_prompt for file in files)
    length = min(_LENGTH, *(file.facts.max_new_tokens for file in files))
    reference = _Reference(model.fit(prompt_limit + length), weights)
    requests: list[tuple[list[int], Choices]] = []
    expected: list[list[int]] = []
    for i in range(sequences):
        # Prompts have many lengths and consist of text that the model drew. Temperatures are 1, 0.7 and 0 (greedy).
        prompt = [files[0].vocabulary.start, *(expected[-1] if expected else [])][: 1 + i % prompt_limit]
        temperature, top_k = ((1.0, 0), (0.7, 40), (0.0, 0))[i % 3]
        choices = Choices(max_new_tokens=length, temperature=temperature, top_k=top_k, seed=i, request=i % 2)
        requests.append((prompt, choices))
        expected.append(list(reference.draw(prompt, choices)))
    contexts = [
        (min(1 + i % _CONTEXT_LENGTH, prompt_limit), [*prompt, *tokens][:_CONTEXT_LENGTH])
        for i, ((prompt, _), tokens) in enumerate(zip(requests, expected, strict=True))
    ][:_CONTEXTS]
    logits = [reference.logits(context)[by_prefill - 1 :] for by_prefill, context in contexts]
    return [_compare(file, requests, expected, contexts, logits) for file in files]


class _Reference:
    """Runs the trained model in TensorFlow, one token at a time, and draws tokens in NumPy."""

    def __init__(self, model: LanguageModel, weights: Weights) -> None:
        constants = {name: tf.constant(value) for name, value in weights.items()}

        @tf.function(autograph=False)
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
        """Returns the logits after each token, `[len(tokens), V]`."""
        return np.stack([logits for logits, _ in self._read(tokens)])

    def draw(self, prompt: Sequence[int], choices: Choices) -> list[int]:
        logits, state = self._read(prompt)[-1]
        return list(numpy_loop.draw(self._next, logits, state, prompt, choices))


def _compare(
    file: device.DeviceModel,
    requests: list[tuple[list[int], Choices]],
    expected: list[list[int]],
    contexts: list[tuple[int, list[int]]],
    logits: list[NDArray[np.float32]],
) -> Parity:
    if "autoregressive" in file.facts.decodings:
        outputs = [file.draw_in_graph(prompt, choices, decoding="autoregressive") for prompt, choices in requests]
        tokens = [output["tokens"].tolist() for output in outputs]
    else:
        outputs, tokens = [], [list(file.draw(*request, decoding="autoregressive")) for request in requests]
    equal_to_model = sum(a == b for a, b in zip(tokens, expected, strict=True))
    equal_to_stream = sum(
        list(file.draw(*request, decoding="autoregressive")) == a for request, a in zip(requests, tokens, strict=True)
    )
    bits_equal = None
    if outputs:
        checks = zip(outputs, requests, strict=True)
        bits_equal = all(_has_equal_bits(output, len(prompt), choices) for output, (prompt, choices) in checks)
    error = max(
        float(np.abs(np.stack([row for row, _ in file.read(context, by_prefill)]) - rows).max())
        for (by_prefill, context), rows in zip(contexts, logits, strict=True)
    )
    spread = float(max(rows.max() for rows in logits) - min(rows.min() for rows in logits))
    first = file.facts.decodings[0]
    speeds = _measure_tokens_per_second(file, first, _costs(file))
    precision = file.facts.precision
    drafting = tuple(
        _compare_drafting(file, decoding, requests[:_DRAFTING_SEQUENCES], spread)
        for decoding in file.facts.decodings
        if decoding != "autoregressive"
    )
    together = file.facts.decodings if file.facts.best_of > 1 else []
    samples = tuple(_compare_samples(file, decoding, *requests[-1]) for decoding in together)
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
        drafting=drafting,
        samples=samples,
        passed=bits_equal is not False
        and all(one.passed for one in drafting)
        and all(one.passed for one in samples)
        and error <= _TOLERANCE[precision] * spread
        and equal_to_stream == len(requests)
        and (precision != "float32" or equal_to_model >= _LEAST_EQUAL * len(requests)),
    )


def _compare_drafting(
    file: device.DeviceModel, decoding: str, requests: list[tuple[list[int], Choices]], spread: float
) -> DraftingParity:
    costs = _costs(file)
    equal, error, parts = 0, 0.0, []
    for prompt, choices in requests:
        output = file.draw_in_graph(prompt, choices, decoding=decoding, costs=costs)
        text = output["tokens"].tolist()
        (drawn,) = file.draws(prompt, [choices], decoding=decoding, costs=costs, compare=True)
        equal += list(drawn) == text
        assert isinstance(drawn, BlockDraw)
        parts.append(drawn.acceptance)
        rows = np.stack([logits for logits, _ in file.read([*prompt, *text][:-1], len(prompt) - 1)][-len(text) :])
        rows = rows.astype(np.float64)
        stated = rows[np.arange(len(text)), text] - np.logaddexp.reduce(rows, axis=1)
        error = max(error, float(np.abs(output["unprocessed_log_probs"] - stated).max()))
    speeds = _measure_tokens_per_second(file, decoding, costs)
    return DraftingParity(
        decoding=decoding,
        sequences=len(requests),
        equal_to_blocks=equal,
        max_log_prob_error=error,
        acceptance=Acceptance.total(parts),
        tokens_per_second=float(np.median(speeds)),
        tokens_per_second_range=(min(speeds), max(speeds)),
        passed=equal == len(requests) and error <= _TOLERANCE[file.facts.precision] * spread,
    )


def _compare_samples(file: device.DeviceModel, decoding: str, prompt: list[int], choices: Choices) -> SamplesParity:
    count = file.facts.best_of
    choices = replace(choices, temperature=1.0, top_k=0)
    drawn, seconds = [], []
    for _ in range(2):  # the first calls pack the weights
        for parts in (1, count):
            begin = time.perf_counter()
            found = [
                row["tokens"].tolist()
                for part in range(parts)
                for row in file.draw_samples(
                    prompt,
                    replace(choices, request=part),
                    count // parts,
                    decoding=decoding,
                    costs=_costs(file),
                )
            ]
            seconds.append(time.perf_counter() - begin)
            drawn.append(found)
    equal = sum(a == b for a, b in zip(drawn[-2], drawn[-1], strict=True))
    passed = equal >= _LEAST_EQUAL * count
    return SamplesParity(decoding, count, equal, seconds[-1] / seconds[-2], passed)


def _costs(file: device.DeviceModel) -> Costs | None:
    """Returns costs with which a file always drafts as many tokens as it can; None if it does not take costs."""
    return Costs(nothing=1e9, verify=1.0, draft=0.0) if file.facts.automatic else None


def _has_equal_bits(output: dict[str, NDArray[Any]], position: int, choices: Choices) -> bool:
    positions = position + np.arange(len(output["word_0"]))
    words = numpy_ops.random_words(numpy_ops.seed_words(choices.seed), Stream.SAMPLE, choices.request, positions)
    return np.array_equal(output["word_0"], words[0]) and np.array_equal(output["word_1"], words[1])


def _measure_tokens_per_second(file: device.DeviceModel, decoding: str, costs: Costs | None = None) -> list[float]:
    """Measures the speed in the graph several times.

    The time for one token, which includes reading the prompt, is subtracted from the time for all tokens.
    """
    count = file.facts.max_new_tokens
    if count == 1:
        return [1 / _time_generate(file, decoding, costs, 1) for _ in range(_TIMINGS)]
    # The minimum is subtracted, because a pause of the machine during a one-token run would otherwise make the long run
    # look faster.
    one = min(_time_generate(file, decoding, costs, 1) for _ in range(_TIMINGS))
    return [(count - 1) / max(_time_generate(file, decoding, costs, count) - one, 1e-9) for _ in range(_TIMINGS)]


def _time_generate(file: device.DeviceModel, decoding: str, costs: Costs | None, tokens: int) -> float:
    """Returns the seconds that the graph's loop takes to draw `tokens` tokens."""
    begin = time.perf_counter()
    choices = Choices(max_new_tokens=tokens)
    file.draw_in_graph([file.vocabulary.start], choices, decoding=decoding, costs=costs)
    return time.perf_counter() - begin

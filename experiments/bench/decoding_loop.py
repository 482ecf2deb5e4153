"""Runs one mode of decoding as an app would: its loop in a TFLite file, on one thread of the LiteRT runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.decoding_modes import Mode, build
from models.decoding.choices import Choices
from models.decoding.numpy_ops import seed_words


class Drawn(NamedTuple):
    """Holds what drawing the tokens of one text after the first block took.

    Attributes:
      seconds: the time, without reading the prompt and the first block.
      tokens: number of tokens.
      calls: number of calls of the target.
      reached: int `[G]`, number of drafted tokens that were decided about, by place.
      accepted: int `[G]`, number of those that were accepted.
    """

    seconds: float
    tokens: int
    calls: int
    reached: Any = 0
    accepted: Any = 0


class Loop:
    """Holds the loop of one mode in the runtime.

    Args:
      mode: the mode; None for plain decoding.
      model: the target.
      weights: its weights by name.
      drafter: what drafts; None for plain decoding.
      precision: precision of all weights in the file, "float32", "float16" or "int8".
      prompt: number of tokens of each prompt.
      tokens: number of tokens to draw.

    Raises:
      ValueError: the mode does not fit the models, or they do not convert.
    """

    def __init__(
        self, mode: Mode | None, model: Any, weights: Any, drafter: Any, precision: str, prompt: int, tokens: int
    ) -> None:
        import tensorflow as tf

        from models.signatures import loop_function

        context, is_int8 = context_of(mode, prompt, tokens), precision == "int8"
        module = tf.Module()
        module.held = []

        def hold(array: Any) -> tf.Variable:
            module.held.append(tf.Variable(array, trainable=False))
            return module.held[-1]

        model = model.fit(context)
        parts = model.equalized(weights) if is_int8 else weights
        if drafter is not None:
            drafter = drafter.deploy(context, hold, is_int8)
        decoder = build(mode, model, {name: hold(part) for name, part in parts.items()}, drafter)
        interpreter = load(module, {"generate": loop_function(decoder, prompt, tokens)}, precision)
        self._generate = interpreter.get_signature_runner("generate")
        self._bias = np.zeros(model.vocabulary_size, np.float32)
        self._tokens = tokens

    def draw(self, prompt: Sequence[int], temperature: float, seed: int) -> Drawn:
        """Draws the tokens that follow a prompt, once up to the end of the first block and once all of them."""
        first, all_of_them = self._run(prompt, temperature, seed, 1), self._run(prompt, temperature, seed, self._tokens)
        return Drawn(*(after - before for before, after in zip(first, all_of_them, strict=True)))  # type: ignore[arg-type]

    def _run(self, prompt: Sequence[int], temperature: float, seed: int, count: int) -> Drawn:
        processing = Choices(temperature=temperature).processing._asdict()
        inputs: dict[str, Any] = {name: np.float32(value) for name, value in processing.items()}
        inputs |= {"top_k": np.int32(processing["top_k"]), "request": np.int32(0), "stop": np.int32(-1)}
        begin = time.perf_counter()
        found = self._generate(
            tokens=np.array([prompt], np.int32),
            length=np.int32(len(prompt)),
            seed=seed_words(seed),
            bias=self._bias,
            max_new=np.int32(count),
            **inputs,
        )
        seconds = time.perf_counter() - begin
        places = (found[name][0] if name in found else 0 for name in ("reached", "accepted"))
        return Drawn(seconds, int(found["decided"][0]), int(found["calls"][0]), *places)


def context_of(mode: Mode | None, prompt: int, tokens: int) -> int:
    """Returns the number of tokens for which a mode's models need room."""
    return prompt + tokens + (0 if mode is None else mode.drafted) + 1


def load(module: Any, functions: Mapping[str, Any], precision: str) -> Any:
    """Converts signatures to TFLite and returns an interpreter of them on one thread.

    Args:
      module: what holds the variables that the functions read.
      functions: the signatures by name, concrete functions.
      precision: precision of the weights.

    Raises:
      ValueError: a function does not convert.
    """
    from models.export import convert
    from models.litert import import_interpreter

    interpreter = import_interpreter()(model_content=convert(module, functions, precision), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def time_rows(model: Any, weights: Any, precision: str, rows: Sequence[int], context: int) -> dict[int, list[float]]:
    """Returns milliseconds of calls of a target that read some number of tokens at once, by this number.

    Args:
      model: the target.
      weights: its weights by name.
      precision: precision of the weights.
      rows: numbers of tokens.
      context: number of tokens for which its state has room.
    """
    import tensorflow as tf

    module, model = tf.Module(), model.fit(context)
    parts = model.equalized(weights) if precision == "int8" else weights
    module.held = {name: tf.Variable(part, trainable=False) for name, part in parts.items()}
    # A state that is an input would be copied for each call.
    state = model.initial_state(1)

    def build(count: int) -> Any:
        def read(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": model.extend(module.held, tokens, state)[0]}

        spec = tf.TensorSpec([1, count], tf.int32, "tokens")
        return tf.function(read, autograph=False).get_concrete_function(spec)

    interpreter = load(module, {f"rows_{count}": build(count) for count in rows}, precision)
    signatures = {count: interpreter.get_signature_runner(f"rows_{count}") for count in rows}
    times: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(_TIMINGS + 1):
        for count, run in signatures.items():
            tokens = np.full([1, count], 3, np.int32)
            begin = time.perf_counter()
            run(tokens=tokens)
            times[count].append(1000 * (time.perf_counter() - begin))
    return {count: values[1:] for count, values in times.items()}  # the first call packs the weights


_TIMINGS = 20

"""Export of a language model to one TFLite file that generates text by itself, with builtin ops only.

Signatures (batch 1, L = max_prompt, N = max_new_tokens, V = vocabulary size; integers are int32):

* `prefill`: tokens `[1, L]`, length `[]` (1 to L, of which the first is the begin token) -> logits `[1, V]`,
  state_0, state_1, ...
* `decode`: token `[1]`, state_0, state_1, ... -> logits `[1, V]`, state_0, state_1, ...
* `generate`: tokens `[1, L]`, length `[]`, seed `[2]`, request `[]`, temperature `[]` (float32; 0 is greedy),
  top_k `[]` (0 is all), max_new `[]`, stop `[]` (a token id, or -1) -> tokens `[1, N]`, lengths `[1]`, and
  the random words word_0, word_1 `[1, N]` that drew them.
"""

import os
import tempfile
from collections import Counter
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models import tflite_file
from models.decoding.loop import generate
from models.decoding.numpy_ops import Stream
from models.decoding.prng import random_words
from models.language_model import LanguageModel, Weights
from models.tflite_file import PRECISIONS
from models.vocabulary import Vocabulary


def export(
    model: LanguageModel,
    weights: Weights,
    vocabulary: Vocabulary,
    path: str | os.PathLike[str],
    precision: str = "float32",
    max_prompt: int = 64,
    max_new_tokens: int = 128,
) -> None:
    """Writes the model, its weights and its vocabulary as one TFLite file (atomically).

    Args:
      model: the language model.
      weights: without a user axis.
      vocabulary: the one that the model was trained with.
      path: of the file to write.
      precision: of the weights: "float32", "float16" (half the size; computes in float32) or "int8" (a
        quarter; dynamic range: activations are quantised as they come).
      max_prompt: tokens of a prompt that `prefill` and `generate` take, the begin token included.
      max_new_tokens: tokens that `generate` gives.

    Raises:
      ValueError: unknown precision, a length below 1, a vocabulary of another size, weights that are not
        finite or not those of the model, or a model that needs other ops than TFLite's own.
      OSError: `path` cannot be written.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    for name, value in (("max_prompt", max_prompt), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not value >= 1:
            raise ValueError(f"{name}: {value!r} is not a positive whole number")
    if model.vocabulary_size != vocabulary.size:
        raise ValueError(f"vocabulary of {vocabulary.size} tokens, but the model was built for {model.vocabulary_size}")
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise ValueError(f"weight {name!r} is not finite: there is nothing to export")
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: make it first")
    max_prompt, max_new_tokens = int(max_prompt), int(max_new_tokens)
    flatbuffer = convert(Decoder(model, weights, max_prompt, max_new_tokens), precision)
    foreign = sorted(name for name in ops(flatbuffer) if name.startswith(("CUSTOM", "Flex")))
    if foreign:
        raise ValueError(f"the model needs ops that TFLite runtimes lack: {', '.join(foreign)}")
    facts = tflite_file.Facts(
        precision=precision,
        config=model.config(),
        max_prompt=max_prompt,
        max_new_tokens=max_new_tokens,
        state_shapes=[state.shape.as_list() for state in tf.nest.flatten(model.initial_state(1))],
        flatbuffer_bytes=len(flatbuffer),
        flatbuffer_sha256=tflite_file.checksum(flatbuffer),
    )
    tflite_file.write(path, flatbuffer, vocabulary, facts)


class Decoder(tf.Module):
    """A model with its weights, and the three signatures as TensorFlow functions: what is exported, and what
    the exported file is compared with."""

    def __init__(self, model: LanguageModel, weights: Weights, max_prompt: int, max_new_tokens: int) -> None:
        super().__init__()
        self.model = model
        # Variables, so that all signatures share one copy in the file.
        self.parameters = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self.state = model.initial_state(1)
        self.max_new_tokens = max_new_tokens
        prompt = (_spec("tokens", [1, max_prompt]), _spec("length"))
        states = [_spec(f"state_{i}", state.shape, state.dtype) for i, state in enumerate(tf.nest.flatten(self.state))]
        choices = (
            _spec("seed", [2]),
            _spec("request"),
            _spec("temperature", dtype=tf.float32),
            _spec("top_k"),
            _spec("max_new"),
            _spec("stop"),
        )
        self.functions = {
            "prefill": tf.function(self._prefill).get_concrete_function(*prompt),
            "decode": tf.function(self._decode).get_concrete_function(_spec("token", [1]), *states),
            "generate": tf.function(self._generate).get_concrete_function(*prompt, *choices),
        }

    def _prefill(self, tokens: tf.Tensor, length: tf.Tensor) -> dict[str, tf.Tensor]:
        logits, state = self.model.prefill(self.parameters, tokens, length[tf.newaxis])
        return {"logits": logits, **_flat(state)}

    def _decode(self, token: tf.Tensor, *states: tf.Tensor) -> dict[str, tf.Tensor]:
        logits, state = self._step(token, tf.nest.pack_sequence_as(self.state, states))
        return {"logits": logits, **_flat(state)}

    def _generate(
        self,
        tokens: tf.Tensor,
        length: tf.Tensor,
        seed: tf.Tensor,
        request: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        max_new: tf.Tensor,
        stop: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        logits, state = self._prefill_in_loop(tokens, length)
        # All words in one call: two hundred tiny ops once, not once a token.
        positions = (length + tf.range(self.max_new_tokens))[tf.newaxis]
        words = random_words(seed, Stream.SAMPLE, request, positions)
        drawn = generate(self._step, logits, state, words, temperature, top_k, max_new, stop)
        return {"tokens": drawn.tokens, "lengths": drawn.lengths, "word_0": words[0], "word_1": words[1]}

    def _prefill_in_loop(self, tokens: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """In a loop of one turn. A weight that stands both in a loop and around it would, in float16, be
        unpacked around it and handed in; products with weights that are inputs are slower, and round
        otherwise."""

        def body(i: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
            return i + 1, *self.model.prefill(self.parameters, tokens, length[tf.newaxis])

        logits = tf.zeros([1, self.model.vocabulary_size])
        return tf.while_loop(lambda i, *_: i < 1, body, (tf.constant(0), logits, self.state))[1:]

    def _step(self, token: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        logits, trail = self.model.extend(self.parameters, token[:, tf.newaxis], state)
        return logits[:, 0], self.model.rewind(trail, tf.ones_like(token))


def convert(decoder: Decoder, precision: str) -> bytes:
    """The flatbuffer."""
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(decoder, folder, signatures=decoder.functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(decoder.functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        # Later TensorFlow would scale the output embedding by rows and keep a second one for looking up; TensorFlow
        # 2.14 knows one way only, and ignores this.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        return bytes(converter.convert())


def ops(flatbuffer: bytes) -> Counter[str]:
    """How often each op stands in all subgraphs together; ops that are not TFLite's own begin with CUSTOM."""
    schema = _schema()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    found: Counter[str] = Counter()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            found[f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name] += 1
    return found


def _schema() -> Any:
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        return import_module("tensorflow.lite.python.schema_py_generated")


def _flat(state: Any) -> dict[str, tf.Tensor]:
    return {f"state_{i}": value for i, value in enumerate(tf.nest.flatten(state))}


def _spec(name: str, shape: Any = (), dtype: tf.DType = tf.int32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name)

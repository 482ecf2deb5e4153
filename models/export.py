"""Exports a language model to one TFLite file that reads and draws token ids by itself, with builtin ops only.

The app itself converts text to ids and back, with the vocabulary in the file's zip (`models.tflite_file`).

The file has three signatures. Their batch size is 1. L and N are the arguments `max_prompt` and `max_new_tokens` of
`export`, and V is the vocabulary size. Integers are int32, all else is float32.

* `prefill` reads a prompt, or the next part of one: tokens `[1, L]` (the first token of a prompt is the begin token),
  length `[]` (number of real tokens, 1 to L), state_0, state_1, ... (zeros before the first part)
  -> logits `[1, V]`, state_0, state_1, ...
* `decode` reads one more token: token `[1]`, state_0, state_1, ... -> logits `[1, V]`, state_0, state_1, ...
* `generate` reads a prompt and draws tokens: tokens `[1, L]`, length `[]`, seed `[2]`, request `[]`, temperature `[]`
  (0 is greedy), top_k `[]` (0 keeps all tokens), max_new `[]` (maximum number of tokens; above N it counts as N),
  stop `[]` (id of the token to end after; -1 for none)
  -> tokens `[1, N]`, lengths `[1]`, and the random words word_0, word_1 `[1, N]` that the tokens were drawn with.

The state of a transformer has room for L + N tokens. Logits are NaN if tokens are read beyond it; TFLite has no errors.
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
from models.vocabularies import AnyVocabulary


def export(
    model: LanguageModel,
    weights: Weights,
    vocabulary: AnyVocabulary,
    path: str | os.PathLike[str],
    precision: str = "float32",
    max_prompt: int = 64,
    max_new_tokens: int = 128,
) -> None:
    """Writes a model, its weights and its vocabulary as one TFLite file.

    The file appears at `path` only when it is complete. If writing fails, an existing file is left unchanged.

    Args:
      model: the language model.
      weights: the model's weights by name, finite and without a client axis.
      vocabulary: the vocabulary that the model was trained with.
      path: the file to write, in a folder that exists.
      precision: weight precision of the file: "float32", "float16" (half the bytes per weight; computes in float32) or
        "int8" (a quarter of the bytes per weight; dynamic-range quantisation, which quantises activations at run time).
      max_prompt: maximum number of tokens that `prefill` and `generate` read, begin token included, >= 1.
      max_new_tokens: maximum number of tokens that `generate` draws, >= 1.

    Raises:
      ValueError: the precision is unknown, a maximum is not a positive integer, the vocabulary's size is not the
        model's, a weight is missing, unknown, of another shape or not finite, or the model needs ops that are not
        TFLite's own.
      OSError: `path` cannot be written.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    for name, value in (("max_prompt", max_prompt), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not value >= 1:
            raise ValueError(f"{name}: {value!r} is not a positive integer")
    if model.vocabulary_size != vocabulary.size:
        raise ValueError(
            f"vocabulary has {vocabulary.size} tokens, but the model was built for {model.vocabulary_size}: "
            "give the vocabulary that the model was trained with"
        )
    _require_weights(model, weights)
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: create it first")
    max_prompt, max_new_tokens = int(max_prompt), int(max_new_tokens)
    if model.context is not None and max_prompt + max_new_tokens > model.context:
        raise ValueError(
            f"max_prompt = {max_prompt} and max_new_tokens = {max_new_tokens} do not fit together in the model's "
            f"context of {model.context} tokens: lower them"
        )
    model = model.fit(max_prompt + max_new_tokens)
    if precision == "int8":
        weights = model.equalized(weights)
    flatbuffer = convert(Decoder(model, weights, max_prompt, max_new_tokens), precision)
    foreign = sorted(name for name in ops(flatbuffer) if name.startswith(("CUSTOM", "Flex")))
    if foreign:
        raise ValueError(
            f"the model needs ops that TFLite has not built in ({', '.join(foreign)}): write its prefill, extend and "
            "rewind without them"
        )
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


def _require_weights(model: LanguageModel, weights: Weights) -> None:
    """Raises a ValueError that names the first weight that is missing, unknown, of another shape or not finite."""
    shapes = model.shapes()
    for name in sorted(shapes.keys() ^ weights.keys()):
        problem = "is missing" if name in shapes else "is not one of the model's"
        raise ValueError(f"weight {name!r} {problem}: give the weights that were trained with this model")
    for name, shape in shapes.items():
        if np.shape(weights[name]) != shape:
            raise ValueError(
                f"weight {name!r} has shape {list(np.shape(weights[name]))}, but the model's has {list(shape)}: "
                "give the weights that were trained with this model, without a client axis"
            )
        if not np.isfinite(weights[name]).all():
            raise ValueError(
                f"weight {name!r} is not finite (NaN or infinity): the model is damaged or diverged; restore it, or "
                "train again with a smaller learning rate"
            )


class Decoder(tf.Module):
    """Holds a model with its weights, and the three signatures of the file as TensorFlow functions.

    Args:
      model: the language model.
      weights: as for `export`.
      max_prompt: as for `export`.
      max_new_tokens: as for `export`.
    """

    def __init__(self, model: LanguageModel, weights: Weights, max_prompt: int, max_new_tokens: int) -> None:
        super().__init__()
        self.model = model
        # As variables, the weights are stored once in the file and shared by all signatures.
        self.parameters = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self.state = model.initial_state(1)
        self.max_new_tokens = max_new_tokens
        prompt = (_make_spec("tokens", [1, max_prompt]), _make_spec("length"))
        states = [
            _make_spec(f"state_{i}", state.shape, state.dtype) for i, state in enumerate(tf.nest.flatten(self.state))
        ]
        choices = (
            _make_spec("seed", [2]),
            _make_spec("request"),
            _make_spec("temperature", dtype=tf.float32),
            _make_spec("top_k"),
            _make_spec("max_new"),
            _make_spec("stop"),
        )
        self.functions = {
            "prefill": tf.function(self._prefill).get_concrete_function(*prompt, *states),
            "decode": tf.function(self._decode).get_concrete_function(_make_spec("token", [1]), *states),
            "generate": tf.function(self._generate).get_concrete_function(*prompt, *choices),
        }

    def _prefill(self, tokens: tf.Tensor, length: tf.Tensor, *states: tf.Tensor) -> dict[str, tf.Tensor]:
        before = tf.nest.pack_sequence_as(self.state, states)
        logits, state = self.model.prefill(self.parameters, tokens, length[tf.newaxis], before)
        return {"logits": logits, **_name_states(state)}

    def _decode(self, token: tf.Tensor, *states: tf.Tensor) -> dict[str, tf.Tensor]:
        logits, state = self._step(token, tf.nest.pack_sequence_as(self.state, states))
        return {"logits": logits, **_name_states(state)}

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
        # One call computes the random words of all tokens, so that its 200 or so small ops run once, not per token.
        positions = (length + tf.range(self.max_new_tokens))[tf.newaxis]
        words = random_words(seed, Stream.SAMPLE, request, positions)
        drawn = generate(self._step, logits, state, words, temperature, top_k, max_new, stop)
        return {"tokens": drawn.tokens, "lengths": drawn.lengths, "word_0": words[0], "word_1": words[1]}

    def _prefill_in_loop(self, tokens: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Runs `prefill` inside a loop of one iteration, so that `generate` uses its weights inside loops only.

        A float16 weight that is used both inside and outside a loop would be converted to float32 outside and passed
        into the loop. Products with such weights are slower, and round differently from those of `decode`.
        """

        def body(i: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
            # From a given state, as the signature `prefill` does, so that both round alike.
            return i + 1, *self.model.prefill(self.parameters, tokens, length[tf.newaxis], self.state)

        logits = tf.zeros([1, self.model.vocabulary_size])
        return tf.while_loop(lambda i, *_: i < 1, body, (tf.constant(0), logits, self.state))[1:]

    def _step(self, token: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        logits, trail = self.model.extend(self.parameters, token[:, tf.newaxis], state)
        return logits[:, 0], self.model.rewind(trail, tf.ones_like(token))


def convert(decoder: Decoder, precision: str) -> bytes:
    """Converts the decoder to a TFLite flatbuffer with weights of the given precision (one of `PRECISIONS`)."""
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(decoder, folder, signatures=decoder.functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(decoder.functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        # Without this setting, versions of TensorFlow after 2.14 quantise the output embedding row by row, and store a
        # second copy of it for the input lookup. TensorFlow 2.14 has no such mode, and ignores the setting.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        return bytes(converter.convert())


def ops(flatbuffer: bytes) -> Counter[str]:
    """Counts each op in all subgraphs of a flatbuffer; the names of ops that are not builtin begin with CUSTOM."""
    schema = _load_schema()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    counts: Counter[str] = Counter()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            counts[f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name] += 1
    return counts


def _load_schema() -> Any:
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        return import_module("tensorflow.lite.python.schema_py_generated")


def _name_states(state: Any) -> dict[str, tf.Tensor]:
    return {f"state_{i}": value for i, value in enumerate(tf.nest.flatten(state))}


def _make_spec(name: str, shape: Any = (), dtype: tf.DType = tf.int32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name)

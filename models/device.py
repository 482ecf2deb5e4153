"""Generates text from an exported model on a device, with NumPy and a LiteRT runtime and without TensorFlow.

    from models import device
    model = device.load("model.tflite")
    for piece in model.stream("To be, or", temperature=0.8, seed=1):
        print(piece, end="", flush=True)

The runtime is `ai-edge-litert`. If that is not installed, TensorFlow's own interpreter is used.
"""

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import tflite_file
from models.decoding import numpy_ops
from models.decoding.numpy_ops import Choices
from models.vocabulary import BOS, EOS, Vocabulary


class DeviceModel:
    """Runs a loaded model file; it serves one request at a time, from one thread.

    Args:
      path: as for `load`.
      threads: as for `load`.

    Attributes:
      path: the file.
      facts: what the file says about the model (`models.tflite_file.Facts`).
      vocabulary: the model's vocabulary.

    Raises:
      OSError: as for `load`.
      ValueError: as for `load`.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = os.fspath(path)
        self.facts, self.vocabulary = tflite_file.read(path)
        try:
            interpreter = _import_interpreter()(model_path=self.path, num_threads=threads)
            # Without this call TensorFlow 2.14's interpreter does not use its fast kernels (XNNPACK) in signatures.
            interpreter.allocate_tensors()
            self._prefill = interpreter.get_signature_runner("prefill")
            self._decode = interpreter.get_signature_runner("decode")
            self._generate = interpreter.get_signature_runner("generate")
            prompt = self._prefill.get_input_details()["tokens"]["shape"].tolist()
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self.path}: the runtime cannot load it ({reason}); export it again or update the runtime"
            ) from None
        if prompt != [1, self.facts.max_prompt]:
            raise ValueError(
                f"{self.path}: damaged (its graph reads {prompt[-1]} tokens, its model.json says "
                f"{self.facts.max_prompt}); export or copy it again"
            )

    def stream(self, prompt: str = "", *, stop_at_eos: bool = True, **choices: Any) -> Iterator[str]:
        """Returns an iterator over the continuation of `prompt`: pieces of whole characters, as soon as they are drawn.

        Args:
          prompt: text of any length. The signature `prefill` reads the first `facts.max_prompt` tokens, begin token
            included, and `decode` reads the others one by one.
          stop_at_eos: whether to end with the sentence; otherwise the text goes on, with line breaks between sentences.
          **choices: fields of `models.decoding.numpy_ops.Choices` other than `stop`.

        Raises:
          ValueError: a choice is outside its range, or the prompt holds a lone surrogate. The iterator, too, raises
            ValueError, if the logits are not finite.
        """
        return decode_stream(self.vocabulary, self.draw(self.encode(prompt), _make_choices(stop_at_eos, choices)))

    def text(self, prompt: str = "", *, stop_at_eos: bool = True, **choices: Any) -> str:
        """Returns the whole continuation of `prompt`, drawn by the loop inside the graph.

        The text is the one that `stream` gives, but it is drawn faster. The graph does not check that its logits are
        finite.

        Args:
          prompt: text of at most `facts.max_prompt` tokens, begin token included.
          stop_at_eos: as for `stream`.
          **choices: as for `stream`, with `max_new_tokens` at most `facts.max_new_tokens`.

        Raises:
          ValueError: a choice is outside its range, the prompt holds a lone surrogate, or the prompt or
            `max_new_tokens` is longer than the file was exported for.
        """
        drawn = self.draw_in_graph(self.encode(prompt), _make_choices(stop_at_eos, choices))["tokens"]
        return "".join(decode_stream(self.vocabulary, drawn.tolist()))

    def encode(self, prompt: str) -> list[int]:
        """Returns the begin token followed by the tokens of `prompt`.

        Raises:
          ValueError: `prompt` holds a lone surrogate.
        """
        try:
            return [BOS, *self.vocabulary.encode(prompt)]
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None

    def draw(self, prompt: Sequence[int], choices: Choices) -> Iterator[int]:
        """Reads `prompt`, which must begin with the begin token, and returns an iterator over ids drawn in NumPy."""
        *_, (logits, state) = self.read(prompt)
        return numpy_ops.draw(self._next, logits, state, len(prompt), choices)

    def read(self, tokens: Sequence[int], by_prefill: int | None = None) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Reads `tokens`; yields (logits `[V]`, state) after the first `by_prefill` tokens and after each later token.

        Args:
          tokens: at least one token id.
          by_prefill: number of tokens that the signature `prefill` reads, 1 to `facts.max_prompt`; None for as many as
            possible. `decode` reads the others.
        """
        head = min(len(tokens), by_prefill or self.facts.max_prompt)
        logits, state = _split_outputs(self._prefill(**self._padded(tokens[:head])))
        yield logits, state
        for token in tokens[head:]:
            logits, state = self._next(token, state)
            yield logits, state

    def draw_in_graph(self, prompt: Sequence[int], choices: Choices) -> dict[str, NDArray[Any]]:
        """Runs the signature `generate` and returns its outputs.

        Args:
          prompt: token ids, at most `facts.max_prompt`; the first is the begin token.
          choices: how to draw, with `max_new_tokens` at most `facts.max_new_tokens`.

        Returns:
          "tokens" `[n]`, equal to those of `draw`; "lengths", which is n; and the random words "word_0" and "word_1"
          `[facts.max_new_tokens]`, all int32.

        Raises:
          ValueError: the prompt or `max_new_tokens` is longer than the file was exported for.
        """
        if len(prompt) > self.facts.max_prompt:
            raise ValueError(
                f"prompt: {len(prompt)} tokens, but {self.path} was exported for {self.facts.max_prompt}; "
                "shorten it, stream it, or export with a larger max_prompt"
            )
        if choices.max_new_tokens > self.facts.max_new_tokens:
            raise ValueError(
                f"max_new_tokens: {choices.max_new_tokens}, but {self.path} was exported for "
                f"{self.facts.max_new_tokens}; ask for fewer, stream them, or export with a larger max_new_tokens"
            )
        outputs = self._generate(
            **self._padded(prompt),
            seed=numpy_ops.seed_words(choices.seed),
            request=np.array(choices.request, np.int32),
            temperature=np.array(choices.temperature, np.float32),
            top_k=np.array(choices.top_k, np.int32),
            max_new=np.array(choices.max_new_tokens, np.int32),
            stop=np.array(choices.stop, np.int32),
        )
        drawn = {name: value[0] for name, value in outputs.items()}
        return {**drawn, "tokens": drawn["tokens"][: drawn["lengths"]]}

    def _next(self, token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
        return _split_outputs(self._decode(token=np.array([token], np.int32), **state))

    def _padded(self, prompt: Sequence[int]) -> dict[str, NDArray[np.int32]]:
        tokens = np.zeros([1, self.facts.max_prompt], np.int32)
        tokens[0, : len(prompt)] = prompt
        return {"tokens": tokens, "length": np.array(len(prompt), np.int32)}


def load(path: str | os.PathLike[str], threads: int = 1) -> DeviceModel:
    """Loads a file that `fedspeak export` or `models.export.export` wrote.

    Args:
      path: the file.
      threads: number of threads of the runtime, >= 1. More than one can be much slower on a busy machine.

    Raises:
      OSError: `path` cannot be read.
      ValueError: `path` is another kind of file, or damaged.
    """
    return DeviceModel(path, threads)


def runtime() -> str:
    """Returns the name and version of the runtime in use."""
    package = _import_interpreter().__module__.split(".")[0].replace("_", "-")
    return f"{package} {metadata.version(package)}"


def decode_stream(vocabulary: Vocabulary, tokens: Iterable[int]) -> Iterator[str]:
    """Yields the text of `tokens` in pieces of whole characters, each as soon as its tokens have come.

    The end of a sentence becomes a line break, unless it is the last token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ended = False
    for token in tokens:
        data = b"\n" * ended + vocabulary.decode_bytes([token])
        ended = token == EOS
        # The end of a sentence ends an unfinished character too.
        piece = decoder.decode(data, final=ended)
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def _make_choices(stop_at_eos: bool, choices: dict[str, Any]) -> Choices:
    return Choices(stop=EOS if stop_at_eos else -1, **choices)


def _split_outputs(outputs: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    return outputs["logits"][0], {name: value for name, value in outputs.items() if name != "logits"}


def _import_interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "ai_edge_litert":
            raise
        try:
            import tensorflow as tf
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "no runtime for exported models is installed: pip install 'fedspeak[models]'",
                name="ai_edge_litert",
            ) from None
        return tf.lite.Interpreter
    return Interpreter

"""Text from an exported model on a device: NumPy, a LiteRT runtime and this package's vocabulary, no
TensorFlow.

    from models import device
    model = device.load("model.tflite")
    for piece in model.stream("To be, or", temperature=0.8, seed=1):
        print(piece, end="", flush=True)

The runtime is `ai-edge-litert`; where that is not installed, TensorFlow's own interpreter.
"""

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import tflite_file
from models.decoding import numpy_ops as host
from models.decoding.numpy_ops import Choices
from models.vocabulary import BOS, EOS, Vocabulary


class DeviceModel:
    """An exported model, loaded. One request at a time; not for several threads."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = os.fspath(path)
        self.facts, self.vocabulary = tflite_file.read(path)
        try:
            interpreter = _interpreter_class()(model_path=self.path, num_threads=threads)
            # TensorFlow 2.14's interpreter leaves its fast kernels (XNNPACK) off in signatures without this
            # call.
            interpreter.allocate_tensors()
            self._prefill = interpreter.get_signature_runner("prefill")
            self._decode = interpreter.get_signature_runner("decode")
            self._generate = interpreter.get_signature_runner("generate")
            prompt = self._prefill.get_input_details()["tokens"]["shape"].tolist()
        except (ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self.path}: the runtime cannot load it: {str(error).splitlines()[0]}") from None
        if prompt != [1, self.facts.max_prompt]:
            raise ValueError(f"{self.path}: damaged, it reads {prompt[-1]} tokens and says {self.facts.max_prompt}")

    def stream(self, prompt: str = "", *, stop_at_eos: bool = True, **choices: Any) -> Iterator[str]:
        """The continuation of `prompt`, piece by piece as it is drawn, in whole characters.

        Args:
          prompt: of any length: what the signature `prefill` does not take, `decode` reads token by token.
          stop_at_eos: end with the sentence; otherwise go on, with a line break between sentences.
          **choices: fields of `Choices`.

        Raises:
          ValueError: a choice outside its range, a prompt that is no Unicode text, or logits that are not
            finite.
        """
        return decode_stream(self.vocabulary, self.draw(self.encode(prompt), _choices(stop_at_eos, choices)))

    def text(self, prompt: str = "", *, stop_at_eos: bool = True, **choices: Any) -> str:
        """The continuation of `prompt` at once, by the loop inside the graph: the same text as `stream`,
        faster.

        Raises:
          ValueError: as `stream`, or prompt or `max_new_tokens` are longer than this file was exported for.
        """
        drawn = self.draw_in_graph(self.encode(prompt), _choices(stop_at_eos, choices))["tokens"]
        return "".join(decode_stream(self.vocabulary, drawn.tolist()))

    def encode(self, prompt: str) -> list[int]:
        """The begin token and the tokens of `prompt`.

        Raises:
          ValueError: `prompt` holds a lone surrogate.
        """
        try:
            return [BOS, *self.vocabulary.encode(prompt)]
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None

    def draw(self, prompt: Sequence[int], choices: Choices) -> Iterator[int]:
        """Token ids, drawn here from the logits of `decode`. `prompt` begins with the begin token."""
        *_, (logits, state) = self.read(prompt)
        return host.draw(self._next, logits, state, len(prompt), choices)

    def read(self, tokens: Sequence[int], by_prefill: int | None = None) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Logits `[V]` and state after the first `by_prefill` tokens, read at once, and after each one that
        follows.

        Args:
          tokens: at least one.
          by_prefill: 1 to `facts.max_prompt`; as many as possible if None.
        """
        head = min(len(tokens), by_prefill or self.facts.max_prompt)
        logits, state = _split(self._prefill(**self._padded(tokens[:head])))
        yield logits, state
        for token in tokens[head:]:
            logits, state = self._next(token, state)
            yield logits, state

    def draw_in_graph(self, prompt: Sequence[int], choices: Choices) -> dict[str, NDArray[Any]]:
        """What `generate` gives: "tokens" `[n]`, the same as `draw`, and the random words "word_0", "word_1"
        `[max_new_tokens]`.

        Raises:
          ValueError: prompt or `max_new_tokens` are longer than this file was exported for.
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
            seed=host.seed_words(choices.seed),
            request=np.array(choices.request, np.int32),
            temperature=np.array(choices.temperature, np.float32),
            top_k=np.array(choices.top_k, np.int32),
            max_new=np.array(choices.max_new_tokens, np.int32),
            stop=np.array(choices.stop, np.int32),
        )
        drawn = {name: value[0] for name, value in outputs.items()}
        return {**drawn, "tokens": drawn["tokens"][: drawn["lengths"]]}

    def _next(self, token: int, state: Any) -> tuple[NDArray[np.float32], Any]:
        return _split(self._decode(token=np.array([token], np.int32), **state))

    def _padded(self, prompt: Sequence[int]) -> dict[str, NDArray[np.int32]]:
        tokens = np.zeros([1, self.facts.max_prompt], np.int32)
        tokens[0, : len(prompt)] = prompt
        return {"tokens": tokens, "length": np.array(len(prompt), np.int32)}


def load(path: str | os.PathLike[str], threads: int = 1) -> DeviceModel:
    """Loads what `fedspeak export` wrote. More threads than one can be much slower on a busy machine.

    Raises:
      OSError: `path` cannot be read.
      ValueError: it is another kind of file, or damaged.
    """
    return DeviceModel(path, threads)


def runtime() -> str:
    """Name and version of the runtime in use."""
    package = _interpreter_class().__module__.split(".")[0].replace("_", "-")
    return f"{package} {metadata.version(package)}"


def decode_stream(vocabulary: Vocabulary, tokens: Iterable[int]) -> Iterator[str]:
    """Text as the tokens come, in whole characters; the end of a sentence is a line break unless it is the
    last token."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ended = False
    for token in tokens:
        data = b"\n" * ended + vocabulary.decode_bytes([token])
        ended = token == EOS
        # A sentence's end also ends a character that was begun.
        piece = decoder.decode(data, final=ended)
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def _choices(stop_at_eos: bool, choices: dict[str, Any]) -> Choices:
    return Choices(stop=EOS if stop_at_eos else -1, **choices)


def _split(outputs: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    return outputs["logits"][0], {name: value for name, value in outputs.items() if name != "logits"}


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "ai_edge_litert":
            raise
        try:
            import tensorflow as tf
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "no runtime for exported models is here, it is of the extra 'models': pip install 'fedspeak[models]'",
                name="ai_edge_litert",
            ) from None
        return tf.lite.Interpreter
    return Interpreter

"""Text from an exported model on a device: NumPy, a LiteRT runtime and this package's vocabulary, no TensorFlow.

    from models import device
    model = device.load("model.tflite")
    for piece in model.stream("To be, or", temperature=0.8, seed=1):
        print(piece, end="", flush=True)

The runtime is `ai-edge-litert`; where that is not installed, TensorFlow's own interpreter.
"""

import codecs
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import tflite_file
from models.decoding import host
from models.vocabulary import BOS, EOS, Vocabulary

NO_TOKEN = -1
_UNBOUNDED = (1 << 31) - 1


@dataclass(frozen=True)
class Choices:
    """How to draw tokens.

    Attributes:
      max_tokens: most tokens to draw.
      temperature: 0 is greedy.
      top_k: draw from the k likeliest tokens only; 0 is all.
      seed: 0 to 2**64 - 1; equal seeds and requests, equal text.
      request: 0 to 2**31 - 1; other requests of one seed are independent.
      stop_at_eos: end with the sentence; otherwise go on, with a line break for the end of a sentence.

    Raises:
      ValueError: a value outside its range.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0
    request: int = 0
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("request", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _UNBOUNDED:
                raise ValueError(f"{name}: {value!r} is not a whole number from {least} to {_UNBOUNDED}")
        host.check_processing(self.temperature, self.top_k)
        host.seed_words(self.seed)

    @property
    def stop(self) -> int:
        """The token to end after, or -1."""
        return EOS if self.stop_at_eos else NO_TOKEN


class DeviceModel:
    """An exported model, loaded. One request at a time; not for several threads."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = os.fspath(path)
        self.facts, self.vocabulary = tflite_file.read(path)
        try:
            interpreter = _interpreter_class()(model_path=self.path, num_threads=threads)
            # TensorFlow 2.14's interpreter leaves its fast kernels (XNNPACK) off in signatures without this call.
            interpreter.allocate_tensors()
            self._prefill = interpreter.get_signature_runner("prefill")
            self._decode = interpreter.get_signature_runner("decode")
            self._generate = interpreter.get_signature_runner("generate")
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{self.path}: the runtime cannot load it: {str(error).splitlines()[0]}") from None

    def stream(self, prompt: str = "", **choices: Any) -> Iterator[str]:
        """The continuation of `prompt`, piece by piece as it is drawn; `choices` are those of `Choices`.

        A prompt may have any length: what the signature `prefill` does not take, `decode` reads token by token. A piece
        ends at a character's end, so tokens that hold parts of characters wait for the rest.

        Raises:
          ValueError: a choice outside its range, a prompt that is no Unicode text, or logits that are not finite.
        """
        return self._pieces(self.draw(self._encode(prompt), Choices(**choices)))

    def text(self, prompt: str = "", **choices: Any) -> str:
        """The continuation of `prompt` at once, from the loop inside the graph: the same text as `stream`, faster.

        Raises:
          ValueError: as `stream`, or prompt or `max_tokens` are longer than this file was exported for.
        """
        return "".join(self._pieces(iter(self.draw_in_graph(self._encode(prompt), Choices(**choices)))))

    def draw(self, prompt: Sequence[int], choices: Choices) -> Iterator[int]:
        """Token ids, drawn here from the logits of `decode`; `prompt` begins with the begin token."""
        head, rest = prompt[: self.facts.max_prompt], prompt[self.facts.max_prompt :]
        outputs = self._prefill(**self._padded(head))
        for token in rest:
            outputs = self._next(token, outputs)
        seed = host.seed_words(choices.seed)
        for position in range(len(prompt), len(prompt) + choices.max_tokens):
            logits = outputs["logits"]
            if not np.isfinite(logits).all():
                raise ValueError(f"{self.path}: its logits are not finite; the model did not train well")
            words = host.random_words(seed, host.Stream.SAMPLE, choices.request, [position])
            token = int(host.sample(host.process(logits, choices.temperature, choices.top_k), words)[0])
            yield token
            if token == choices.stop:
                return
            outputs = self._next(token, outputs)

    def draw_in_graph(self, prompt: Sequence[int], choices: Choices) -> list[int]:
        """Token ids from the signature `generate`; the same as those of `draw`."""
        return self.run_generate(prompt, choices)["tokens"].tolist()

    def run_generate(self, prompt: Sequence[int], choices: Choices) -> dict[str, NDArray[Any]]:
        """What `generate` returns: "tokens" `[n]`, n the number drawn, and the words "word_0", "word_1" `[max_tokens]`.

        Raises:
          ValueError: prompt or `max_tokens` are longer than this file was exported for.
        """
        if len(prompt) > self.facts.max_prompt:
            raise ValueError(
                f"prompt: {len(prompt)} tokens, but {self.path} was exported for {self.facts.max_prompt}; "
                "shorten it, stream it, or export with a larger max_prompt"
            )
        if choices.max_tokens > self.facts.max_tokens:
            raise ValueError(
                f"max_tokens: {choices.max_tokens}, but {self.path} was exported for {self.facts.max_tokens}; "
                "ask for fewer, stream them, or export with a larger max_tokens"
            )
        outputs = self._generate(
            **self._padded(prompt),
            seed=host.seed_words(choices.seed),
            request=np.array(choices.request, np.int32),
            temperature=np.array(choices.temperature, np.float32),
            top_k=np.array(choices.top_k, np.int32),
            max_new=np.array(choices.max_tokens, np.int32),
            stop=np.array(choices.stop, np.int32),
        )
        drawn = {name: value[0] for name, value in outputs.items()}
        return {**drawn, "tokens": drawn["tokens"][: drawn["lengths"]]}

    def logits(self, tokens: Sequence[int], prompt_length: int) -> NDArray[np.float32]:
        """`[len(tokens) - prompt_length + 1, V]`: after the prompt, read by `prefill`, and each token that follows."""
        outputs = self._prefill(**self._padded(tokens[:prompt_length]))
        rows = [outputs["logits"][0]]
        for token in tokens[prompt_length:]:
            outputs = self._next(token, outputs)
            rows.append(outputs["logits"][0])
        return np.stack(rows)

    def _next(self, token: int, outputs: dict[str, Any]) -> dict[str, Any]:
        state = {name: value for name, value in outputs.items() if name != "logits"}
        return self._decode(token=np.array([token], np.int32), **state)

    def _padded(self, prompt: Sequence[int]) -> dict[str, NDArray[np.int32]]:
        tokens = np.zeros([1, self.facts.max_prompt], np.int32)
        tokens[0, : len(prompt)] = prompt
        return {"tokens": tokens, "length": np.array(len(prompt), np.int32)}

    def _encode(self, prompt: str) -> list[int]:
        return [BOS, *self.vocabulary.encode(prompt)]

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        return decode_stream(self.vocabulary, tokens)


def load(path: str | os.PathLike[str], threads: int = 1) -> DeviceModel:
    """Loads what `fedspeak export` wrote. More threads than one can be much slower on a busy machine.

    Raises:
      OSError: `path` cannot be read.
      ValueError: it is another kind of file, or damaged.
    """
    return DeviceModel(path, threads)


def decode_stream(vocabulary: Vocabulary, tokens: Iterator[int]) -> Iterator[str]:
    """Text as the tokens come, in whole characters; the end of a sentence is a line break unless it is the last token."""
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


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite import Interpreter  # type: ignore[no-redef]
    return Interpreter

"""Generates text from an exported model on a device, with NumPy and a LiteRT runtime and without TensorFlow.

    from models import device
    model = device.load("model.tflite")
    for piece in model.stream("To be, or", temperature=0.8, seed=1):
        print(piece, end="", flush=True)

The runtime is `ai-edge-litert`. If that is not installed, TensorFlow's own interpreter is used.
"""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import tflite_file
from models.decoding import numpy_loop
from models.decoding.choices import OFF, Choices
from models.decoding.numpy_loop import Mask
from models.decoding.numpy_ops import seed_words
from models.decoding.numpy_processing import make_bias
from models.vocabularies import AnyVocabulary
from models.vocabulary import EOS


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
            inputs = self._prefill.get_input_details()
            prompt = inputs.pop("tokens")["shape"].tolist()
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
        # Empty for a file that fedspeak 0.2 or earlier exported: its `prefill` reads only the beginning of a prompt.
        self._start = {
            name: np.zeros(input["shape"], input["dtype"]) for name, input in inputs.items() if name != "length"
        }

    def stream(
        self,
        prompt: str = "",
        *,
        chat: bool = False,
        stop_at_eos: bool = True,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
        **choices: Any,
    ) -> Iterator[str]:
        """Returns an iterator over the continuation of `prompt`: pieces of whole characters, as soon as they are drawn.

        Args:
          prompt: text of any length or, for a transformer, of at most `facts.context` tokens together with
            `max_new_tokens`. The signature `prefill` reads `facts.max_prompt` tokens at a time.
          chat: whether `prompt` is a message that the model answers, by the chat template of an imported model.
          stop_at_eos: whether to end with the sentence; otherwise the text goes on, with line breaks between sentences.
          bias: token id -> number that is added to the token's logit, -1e6 to 1e6; -inf bans the token.
          banned: ids of tokens that are never drawn.
          mask: function from the ids generated so far to a bool array `[V]` of the tokens that may come next, or None
            for all. It is called before each draw, for example by a grammar.
          **choices: fields of `models.decoding.choices.Choices` other than `stop`.

        Raises:
          ValueError: a choice, a bias or an id is outside its range, the prompt holds a lone surrogate, the model has
            no chat template, or prompt and `max_new_tokens` exceed `facts.context`. The iterator, too, raises
            ValueError, if the logits are not finite or no token may come next.
        """
        options = _make_choices(stop_at_eos, choices)
        tokens = self.draw(self.encode(prompt, chat), options, bias=bias, banned=banned, mask=mask)
        return decode_stream(self.vocabulary, tokens)

    def text(self, prompt: str = "", *, stop_at_eos: bool = True, **choices: Any) -> str:
        """Returns the whole continuation of `prompt`, drawn by the loop inside the graph.

        The text is the one that `stream` gives, but it is drawn faster. The graph does not check that its logits are
        finite, and it applies temperature and top-k only.

        Args:
          prompt: text of at most `facts.max_prompt` tokens, begin token included.
          stop_at_eos: as for `stream`.
          **choices: as for `stream`, with `max_new_tokens` at most `facts.max_new_tokens`.

        Raises:
          ValueError: a choice is outside its range or not supported by the graph, the prompt holds a lone surrogate, or
            the prompt or `max_new_tokens` is longer than the file was exported for.
        """
        drawn = self.draw_in_graph(self.encode(prompt), _make_choices(stop_at_eos, choices))["tokens"]
        return "".join(decode_stream(self.vocabulary, drawn.tolist()))

    def encode(self, prompt: str, chat: bool = False) -> list[int]:
        """Returns the tokens that the model reads before it continues `prompt`, the begin token first if it has one.

        Args:
          prompt: the text.
          chat: as for `stream`.

        Raises:
          ValueError: `prompt` holds a lone surrogate, or the model has no chat template.
        """
        try:
            return self.vocabulary.chat(prompt) if chat else self.vocabulary.prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{'chat' if chat else 'prompt'}: {error}") from None

    def draw(
        self,
        prompt: Sequence[int],
        choices: Choices,
        *,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
    ) -> Iterator[int]:
        """Reads `prompt`, token ids as `encode` returns them, and returns an iterator over ids drawn in NumPy.

        Args:
          prompt: the token ids.
          choices: how to draw, and how many tokens at most.
          bias: as for `stream`.
          banned: as for `stream`.
          mask: as for `stream`.

        Raises:
          ValueError: a bias or an id is outside its range, or prompt and `choices.max_new_tokens` exceed
            `facts.context`. The iterator, too, raises ValueError, as for `stream`.
        """
        return self.draws(prompt, [choices], bias=bias, banned=banned, mask=mask)[0]

    def draws(
        self,
        prompt: Sequence[int],
        choices: Sequence[Choices],
        *,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
    ) -> list[Iterator[int]]:
        """Reads `prompt` once, and returns an iterator for each of `choices` as `draw` does.

        Args:
          prompt: as for `draw`.
          choices: as for `draw`, at least one.
          bias: as for `stream`.
          banned: as for `stream`.
          mask: as for `stream`.

        Raises:
          ValueError: as for `draw`.
        """
        row = make_bias(self.vocabulary.size, bias, banned)
        context, most = self.facts.context, max(one.max_new_tokens for one in choices)
        if context is not None and len(prompt) + most > context:
            raise ValueError(
                f"prompt: {len(prompt)} tokens and max_new_tokens = {most} exceed the {context} tokens that "
                f"{self.path} was exported for; shorten one, or export with larger limits"
            )
        *_, (logits, state) = self.read(prompt)
        return [numpy_loop.draw(self._next, logits, state, prompt, one, row, mask) for one in choices]

    def read(self, tokens: Sequence[int], by_prefill: int | None = None) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Reads `tokens` part by part, and yields (logits `[V]`, state) after each part.

        The signature `prefill` reads parts of `facts.max_prompt` tokens. `decode` reads single tokens.

        Args:
          tokens: at least one token id; for a transformer at most `facts.context`.
          by_prefill: number of tokens that `prefill` reads, 1 to `facts.max_prompt`, before `decode` reads all others.
            None: `prefill` reads as many as possible.
        """
        part = self.facts.max_prompt if by_prefill is None else by_prefill
        logits, state = _split_outputs(self._prefill(**self._padded(tokens[:part]), **self._start))
        yield logits, state
        read = min(part, len(tokens))
        while read < len(tokens):
            if by_prefill is None and self._start and read + 1 < len(tokens):
                begin, state = self._make_room(read, state)
                chunk = tokens[begin : begin + part]
                logits, state = _split_outputs(self._prefill(**self._padded(chunk), **state))
                read = begin + len(chunk)
            else:
                logits, state = self._next(tokens[read], state)
                read += 1
            yield logits, state

    def _make_room(self, read: int, state: Any) -> tuple[int, Any]:
        """Returns the number of tokens after which `prefill` has room for a whole part, and the state after these.

        `prefill` writes its padding too. Near the end of a transformer's room it reads the last tokens once more.
        """
        if self.facts.context is None or read + self.facts.max_prompt <= self.facts.context:
            return read, state
        begin = self.facts.context - self.facts.max_prompt
        length = f"state_{len(state) - 1}"
        return begin, {**state, length: np.full_like(state[length], begin)}

    def draw_in_graph(self, prompt: Sequence[int], choices: Choices) -> dict[str, NDArray[Any]]:
        """Runs the signature `generate` and returns its outputs.

        Args:
          prompt: token ids, at most `facts.max_prompt`; the first is the begin token.
          choices: how to draw, with `max_new_tokens` at most `facts.max_new_tokens`. Of the options that change logits
            only temperature and top-k may be on.

        Returns:
          "tokens" `[n]`, equal to those of `draw`; "lengths", which is n; and the random words "word_0" and "word_1"
          `[facts.max_new_tokens]`, all int32.

        Raises:
          ValueError: the prompt or `max_new_tokens` is longer than the file was exported for, or the graph does not
            support an option.
        """
        for name, off in OFF._asdict().items():
            if name not in ("temperature", "top_k") and getattr(choices, name) != off:
                raise ValueError(
                    f"{name} = {getattr(choices, name)!r}: the loop in the graph applies temperature and top_k only; "
                    f"stream the text, or leave {name} at {off:g}"
                )
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
            seed=seed_words(choices.seed),
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


def decode_stream(vocabulary: AnyVocabulary, tokens: Iterable[int]) -> Iterator[str]:
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

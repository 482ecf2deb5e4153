"""Generates text from an exported model on a device, with NumPy and a LiteRT runtime and without TensorFlow.

    from models import device
    model = device.load("model.tflite")
    for piece in model.stream("To be, or", temperature=0.8, seed=1):
        print(piece, end="", flush=True)

The runtime is `ai-edge-litert`. If that is not installed, TensorFlow's own interpreter is used.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import device_signatures, tflite_file
from models.decoding import numpy_loop
from models.decoding.choices import Choices, Costs, check_ids, require_integer
from models.decoding.numpy_loop import Mask
from models.decoding.numpy_processing import make_bias
from models.device_blocks import BlockDraw
from models.device_signatures import PLAIN, load_signatures, signature_name
from models.litert import runtime
from models.text_stream import decode_stream, stop_before
from models.vocabulary import EOS

__all__ = ["DeviceModel", "decode_stream", "load", "runtime"]


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
        self._signatures = load_signatures(
            self.path, self.facts.decodings, self.facts.automatic, self.facts.best_of, threads
        )
        self._prefill, self._decode = self._signatures["prefill"], self._signatures["decode"]
        inputs = self._prefill.get_input_details()
        prompt = inputs.pop("tokens")["shape"].tolist()
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
        stop_texts: Sequence[str] = (),
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
        **choices: Any,
    ) -> Iterator[str]:
        """Returns an iterator over the continuation of `prompt`: pieces of whole characters, as soon as they are drawn.

        Args:
          prompt: text of any length or, for a transformer, of at most `facts.context` tokens together with
            `max_new_tokens`. The file reads `facts.max_prompt` tokens at a time.
          chat: whether `prompt` is a message that the model answers, by the chat template of an imported model.
          stop_at_eos: whether to end with the sentence; otherwise the text goes on, with line breaks between sentences.
          stop_texts: strings of which the one that ends first ends the text, and is left out, however tokens divide
            them; none of them empty.
          decoding: one of `facts.decodings`, or "autoregressive"; None is the first of `facts.decodings`.
          costs: the measured times of a block, for files with automatic draft lengths (`models.device_costs.measure`).
          bias: token id -> number that is added to the token's logit, -1e6 to 1e6; -inf bans the token.
          banned: ids of tokens that are never drawn.
          mask: function from the ids generated so far to a bool array `[V]` of the tokens that may come next, or None
            for all. It is called before each draw, for example by a grammar; only with decoding "autoregressive".
          **choices: fields of `models.decoding.choices.Choices` other than `stop`.

        Raises:
          ValueError: a choice, a bias or an id is outside its range, the file lacks the decoding, the prompt holds a
            lone surrogate, the model has no chat template, or prompt and `max_new_tokens` exceed `facts.context`. The
            iterator, too, raises ValueError, if the logits are not finite or no token may come next.
        """
        options = _make_choices(stop_at_eos, choices)
        tokens = self.draw(
            self.encode(prompt, chat), options, decoding=decoding, costs=costs, bias=bias, banned=banned, mask=mask
        )
        return stop_before(decode_stream(self.vocabulary, tokens), stop_texts)

    def text(
        self,
        prompt: str = "",
        *,
        stop_at_eos: bool = True,
        stop_texts: Sequence[str] = (),
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        **choices: Any,
    ) -> str:
        """Returns the whole continuation of `prompt`, drawn by the loop inside the graph.

        The text is the one that `stream` gives, but it is drawn faster.

        Args:
          prompt: text of at most `facts.max_prompt` tokens, begin token included.
          stop_at_eos: as for `stream`.
          stop_texts: as for `stream`.
          decoding: as for `stream`.
          costs: as for `stream`.
          bias: as for `stream`.
          banned: as for `stream`.
          **choices: as for `stream`, with `max_new_tokens` at most `facts.max_new_tokens`.

        Raises:
          ValueError: as for `draw_in_graph`, or the prompt holds a lone surrogate.
        """
        options = _make_choices(stop_at_eos, choices)
        drawn = self.draw_in_graph(
            self.encode(prompt), options, decoding=decoding, costs=costs, bias=bias, banned=banned
        )
        return "".join(stop_before(decode_stream(self.vocabulary, drawn["tokens"].tolist()), stop_texts))

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
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
    ) -> Iterator[int]:
        """Reads `prompt`, token ids as `encode` returns them, and returns an iterator over drawn ids.

        Args:
          prompt: the token ids.
          choices: how to draw, and how many tokens at most.
          decoding: as for `stream`.
          costs: as for `stream`.
          bias: as for `stream`.
          banned: as for `stream`.
          mask: as for `stream`.

        Returns:
          For decoding "autoregressive" an iterator that draws in NumPy, for the others a
          `models.device_blocks.BlockDraw`, which also gives log-probabilities and acceptance, and can go on later.

        Raises:
          ValueError: as for `stream`, and for the iterator too.
        """
        options: dict[str, Any] = {"costs": costs, "bias": bias, "banned": banned, "mask": mask}
        return self.draws(prompt, [choices], decoding=decoding, **options)[0]

    def draws(
        self,
        prompt: Sequence[int],
        choices: Sequence[Choices],
        *,
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        mask: Mask | None = None,
        compare: bool = False,
    ) -> list[Iterator[int]]:
        """Returns an iterator for each of `choices`, at least one, as `draw` does; arguments as there.

        Args:
          compare: whether acceptances of decoding "spectr" say what share of the best rule's acceptance K-SEQ reaches.
            NumPy takes some milliseconds a block for it, not while drawing (`BlockDraw.compare`).

        Raises:
          ValueError: as for `draw`.
        """
        decoding = device_signatures.choose_decoding(self.path, self.facts, decoding, costs)
        prompt = check_ids("prompt", prompt, self.vocabulary.size)
        row = make_bias(self.vocabulary.size, bias, banned)
        context, most = self.facts.context, max((one.max_new_tokens for one in choices), default=0)
        if context is not None and len(prompt) + most > context:
            raise ValueError(
                f"prompt: {len(prompt)} tokens and max_new_tokens = {most} exceed the {context} tokens that "
                f"{self.path} was exported for; shorten one, or export with larger limits"
            )
        if decoding == PLAIN:
            *_, (logits, state) = self.read(prompt)
            return [numpy_loop.draw(self._next, logits, state, prompt, one, row, mask) for one in choices]
        if mask is not None:
            raise ValueError(f"mask: decoding = {decoding!r} draws blocks in the graph; choose 'autoregressive'")
        read, block = (self._signatures[signature_name(kind, decoding)] for kind in ("read", "block"))
        plain = self._signatures.get(signature_name("plain_block", decoding), block)
        inputs = [device_signatures.build_inputs(self.path, self.facts, one, row, decoding, costs) for one in choices]
        state = {
            name: np.zeros(detail["shape"], detail["dtype"])
            for name, detail in read.get_input_details().items()
            if name.startswith("state_")
        }
        parts = self._split(prompt)
        for i, part in enumerate(parts):
            flags = {"begins_here": i == 0, "ends_here": i + 1 == len(parts)}
            places = {name: np.array(flag, np.int32) for name, flag in flags.items()}
            state = read(**self._padded(part), **places, **state)
        num_drafts = self.facts.num_drafts if compare and decoding == "spectr" else 0
        return [
            BlockDraw((block, plain), state, len(prompt), one_inputs, one, context, num_drafts, decoding == "tree")
            for one_inputs, one in zip(inputs, choices, strict=True)
        ]

    def _split(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        """Splits tokens into parts of `facts.max_prompt`, of which only the first may be shorter.

        Reading writes the padding of a part too, which at the end of a transformer's room would not fit.
        """
        size = self.facts.max_prompt
        first = (len(tokens) - 1) % size + 1
        return [tokens[:first], *(tokens[i : i + size] for i in range(first, len(tokens), size))]

    def read(self, tokens: Sequence[int], by_prefill: int | None = None) -> Iterator[tuple[NDArray[np.float32], Any]]:
        """Reads `tokens` part by part, and yields (logits `[V]`, state) after each part.

        The signature `prefill` reads parts of at most `facts.max_prompt` tokens. `decode` reads single tokens.

        Args:
          tokens: at least one token id; for a transformer at most `facts.context`.
          by_prefill: number of tokens that `prefill` reads, 0 to `facts.max_prompt`, before `decode` reads all others.
            None: `prefill` reads all but the last, as the loop in the graph does.
        """
        if not self._start:  # exported by fedspeak 0.2 or earlier: `prefill` reads only the beginning of a prompt
            by_prefill = min(len(tokens), by_prefill or self.facts.max_prompt)
        count = len(tokens) - 1 if by_prefill is None else by_prefill
        state: Any = self._start
        for part in self._split(tokens[:count]) if count else []:
            logits, state = _split_outputs(self._prefill(**self._padded(part), **state))
            yield logits, state
        for token in tokens[count:]:
            logits, state = self._next(token, state)
            yield logits, state

    def draw_in_graph(
        self,
        prompt: Sequence[int],
        choices: Choices,
        *,
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
    ) -> dict[str, NDArray[Any]]:
        """Draws all tokens by the loop inside the graph, and returns its outputs.

        Args:
          prompt: token ids, at most `facts.max_prompt`; the first is the begin token.
          choices: how to draw, with `max_new_tokens` at most `facts.max_new_tokens`.
          decoding: as for `stream`.
          costs: as for `stream`.
          bias: as for `stream`.
          banned: as for `stream`.

        Returns:
          "tokens" `[n]`, equal to those of `draw`, and the other outputs of the signature that `models.export`
          describes, without the batch axis.

        Raises:
          ValueError: an argument is outside its range, the file lacks the decoding, the prompt or `max_new_tokens` is
            longer than the file was exported for, or the logits are not finite or leave no token.
        """
        return self.draw_samples(prompt, choices, 1, decoding=decoding, costs=costs, bias=bias, banned=banned)[0]

    def draw_samples(
        self,
        prompt: Sequence[int],
        choices: Choices,
        count: int,
        *,
        decoding: str | None = None,
        costs: Costs | None = None,
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
    ) -> list[dict[str, NDArray[Any]]]:
        """Draws several texts after one prompt by the loop inside the graph, and returns its outputs for each.

        They are those of `draw_in_graph` for the request numbers `choices.request`, `choices.request` + 1, …. A file
        that was exported for `count` texts reads the prompt once and draws them together, where the model may round
        otherwise than for one; any other file draws one after another.

        Args:
          prompt: as for `draw_in_graph`.
          choices: as for `draw_in_graph`.
          count: number of texts, >= 1.
          decoding: as for `stream`.
          costs: as for `stream`.
          bias: as for `stream`.
          banned: as for `stream`.

        Raises:
          ValueError: as for `draw_in_graph`.
        """
        count = require_integer("count", count, 1)
        decoding = device_signatures.choose_decoding(self.path, self.facts, decoding, costs)
        if decoding not in self.facts.decodings:
            raise ValueError(
                f"decoding = {decoding!r}: the graph of {self.path} has the loop of {', '.join(self.facts.decodings)} "
                "only; stream the text, or export again"
            )
        prompt = check_ids("prompt", prompt, self.vocabulary.size)
        row = make_bias(self.vocabulary.size, bias, banned)
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
        together = 1 < count == self.facts.best_of
        kind = "generate_best_of_n" if together else "generate"
        drawn = []
        for request in range(choices.request, choices.request + (1 if together else count)):
            own = replace(choices, request=request)
            inputs = device_signatures.build_inputs(self.path, self.facts, own, row, decoding, costs)
            if not self._start:
                inputs = device_signatures.keep_known(inputs, own, row)
            limits = {"max_new": choices.max_new_tokens, "stop": choices.stop}
            outputs = self._signatures[signature_name(kind, decoding)](
                **self._padded(prompt), **inputs, **{name: np.array(value, np.int32) for name, value in limits.items()}
            )
            drawn += device_signatures.split_rows(outputs, len(prompt))
        return drawn

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


def _make_choices(stop_at_eos: bool, choices: dict[str, Any]) -> Choices:
    return Choices(stop=EOS if stop_at_eos else -1, **choices)


def _split_outputs(outputs: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    return outputs["logits"][0], {name: value for name, value in outputs.items() if name != "logits"}

"""Builds the signatures of an exported file as TensorFlow functions; `models.export` says what each takes and gives."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from models.decoding.block_decoder import Block, BlockDecoder, Request, State, is_plain
from models.decoding.choices import Costs, Processing
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter
from models.decoding.loop import Ends, Generated, begin, generate, repeat_rows
from models.language_model import LanguageModel, Weights

_INTEGERS = ("top_k",)
_COUNTS = ("calls", "decided", "drafted", "reached", "accepted")


class Signatures(tf.Module):
    """Holds a model with its weights, and the file's signatures as TensorFlow functions.

    Attributes:
      functions: the signatures by name.

    Args:
      model: the language model, with states for a prompt, all new tokens and one block.
      weights: its weights by name.
      max_prompt: as for `models.export.export`.
      max_new_tokens: as for `models.export.export`.
      decodings: as for `models.export.export`.
      drafter: as for `models.export.export`, after `Drafter.deploy`.
      drafter_variables: the variables of the drafter, which are saved with the module.
      options: the sizes of drafts.
      best_of: as for `models.export.export`.
    """

    def __init__(
        self,
        model: LanguageModel,
        weights: Weights,
        max_prompt: int,
        max_new_tokens: int,
        decodings: Sequence[str] = ("autoregressive",),
        drafter: Drafter | None = None,
        drafter_variables: Sequence[tf.Variable] = (),
        options: DraftOptions | None = None,
        best_of: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        # As variables, the weights are stored once in the file and shared by all signatures.
        self.parameters = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self.drafter_variables = list(drafter_variables)
        self.state = model.initial_state(1)
        self.max_prompt, self.max_new_tokens, self.best_of = max_prompt, max_new_tokens, best_of
        prompt = (_spec("tokens", [1, max_prompt]), _spec("length"))
        states = _state_specs(self.state)
        self.functions = {
            "prefill": tf.function(self._prefill, autograph=False).get_concrete_function(*prompt, *states),
            "decode": tf.function(self._decode, autograph=False).get_concrete_function(_spec("token", [1]), *states),
        }
        for name in decodings:
            own = None if name == "autoregressive" else drafter
            self._add(name, build_decoder(name, model, self.parameters, own, options or DraftOptions()), prompt)

    def _add(self, name: str, decoder: BlockDecoder, prompt: tuple[tf.TensorSpec, ...]) -> None:
        """Adds the signatures of one decoding."""
        choices = _choice_specs(decoder)
        suffix = "" if name == "autoregressive" else f"_{name.replace('-', '_')}"
        limits = self.max_prompt, self.max_new_tokens
        self.functions[f"generate{suffix}"] = loop_function(decoder, *limits)
        if self.best_of > 1:
            self.functions[f"generate_best_of_n{suffix}"] = loop_function(decoder, *limits, self.best_of)
        if name == "autoregressive":
            return
        initial = decoder.initial_state(1)
        states = _state_specs(initial)

        def read(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
            tokens, length, begins_here, ends_here, *states = arguments
            given = tf.nest.pack_sequence_as(initial, states)
            # Computed here, as in `generate`: a drafter may compute it from its weights, which a file may quantise.
            fresh = decoder.initial_state(1)
            state = tf.nest.map_structure(lambda new, old: tf.where(begins_here > 0, new, old), fresh, given)
            return _name_states(_read(decoder, tokens, length, ends_here, state))

        def draw(name: str, *arguments: tf.Tensor) -> dict[str, tf.Tensor]:
            state = tf.nest.pack_sequence_as(initial, arguments[len(choices) :])
            request = _build_request(arguments[: len(choices)])
            words = tf.nest.map_structure(lambda part: part[:, 0], decoder.words(request, state.position, 1))
            found, state = getattr(decoder, name)(state, request, words, tf.ones([1], tf.bool))
            drafts = {"drafts": decoder.drafts(state, request)} if decoder.automatic else {}
            return {**_name_block(found), **drafts, **_name_states(state)}

        self.functions[f"read{suffix}"] = tf.function(read, autograph=False).get_concrete_function(
            *prompt, _spec("begins_here"), _spec("ends_here"), *states
        )
        for name in ("block", "plain_block") if decoder.automatic else ("block",):
            function = tf.function(partial(draw, name), autograph=False)
            self.functions[f"{name}{suffix}"] = function.get_concrete_function(*choices, *states)

    def _prefill(self, tokens: tf.Tensor, length: tf.Tensor, *states: tf.Tensor) -> dict[str, tf.Tensor]:
        before = tf.nest.pack_sequence_as(self.state, states)
        logits, state = self.model.prefill(self.parameters, tokens, length[tf.newaxis], before)
        return {"logits": logits, **_name_states(state)}

    def _decode(self, token: tf.Tensor, *states: tf.Tensor) -> dict[str, tf.Tensor]:
        before = tf.nest.pack_sequence_as(self.state, states)
        logits, trail = self.model.extend(self.parameters, token[:, tf.newaxis], before)
        return {"logits": logits[:, 0], **_name_states(self.model.rewind(trail, tf.ones_like(token)))}


def loop_function(decoder: BlockDecoder, max_prompt: int, max_new_tokens: int, texts: int = 1) -> Any:
    """Returns the signature `generate` of a decoder, or `generate_best_of_n` of several texts, as a concrete function.

    Args:
      decoder: the decoder; its states have room for a prompt, all new tokens and one block.
      max_prompt: as for `models.export.export`.
      max_new_tokens: as for `models.export.export`.
      texts: number of texts that continue the prompt.
    """

    def run(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, length, *choices, max_new, stop = arguments
        request = _build_request(choices)
        request = request._replace(request=request.request + tf.range(texts))
        state = repeat_rows(_read_in_loop(decoder, tokens, length), texts)
        words = decoder.words(request, state.position, max_new_tokens)
        ends = Ends(max_new, stop, tf.zeros([0, 1], tf.int32))
        drawn = generate(decoder, begin(decoder, state), request, ends, words)
        outputs = _name_outputs(drawn)
        if texts == 1 and not decoder.draft_length:
            outputs |= {"word_0": words[0], "word_1": words[1]}
        return outputs

    prompt = _spec("tokens", [1, max_prompt]), _spec("length")
    specs = *prompt, *_choice_specs(decoder), _spec("max_new"), _spec("stop")
    return tf.function(run, autograph=False).get_concrete_function(*specs)


def _choice_specs(decoder: BlockDecoder) -> list[tf.TensorSpec]:
    """Returns the inputs by which a request says what to draw."""
    choices = [
        _spec("seed", [2]),
        _spec("request"),
        *(_spec(field, dtype=tf.int32 if field in _INTEGERS else tf.float32) for field in Processing._fields),
        _spec("bias", [decoder.model.vocabulary_size], tf.float32),
    ]
    if decoder.automatic:
        choices += [_spec(f"{field}_cost", dtype=tf.float32) for field in Costs._fields]
    return choices


def _read(decoder: BlockDecoder, tokens: tf.Tensor, length: tf.Tensor, ends_here: tf.Tensor, state: State) -> State:
    """Reads a part of a prompt; its last token begins the text if `ends_here` is not 0."""
    count = (length - ends_here)[tf.newaxis]
    state = decoder.read(tokens, count, state)
    # A full part that does not end the prompt has no token at `count`, and its `begun` is not used.
    last = tf.gather(tokens, tf.minimum(count, tokens.shape[1] - 1), axis=1, batch_dims=1)
    begun = decoder.begin(last, state)
    return tf.nest.map_structure(lambda new, old: tf.where(ends_here > 0, new, old), begun, state)


def _read_in_loop(decoder: BlockDecoder, tokens: tf.Tensor, length: tf.Tensor) -> State:
    """Reads a whole prompt inside a loop of at most one iteration, so that weights are used inside loops only.

    A float16 weight that is used both inside and outside a loop would be converted to float32 outside and passed into
    the loop. Products with such weights are slower, and round differently from those of `decode`.
    """

    def body(i: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        return i + 1, decoder.read(tokens, (length - 1)[tf.newaxis], state)

    start = (tf.constant(0), decoder.initial_state(1))
    state = tf.while_loop(lambda i, _: (i < 1) & (length > 1), body, start)[1]
    return decoder.begin(tf.gather(tokens, (length - 1)[tf.newaxis], axis=1, batch_dims=1), state)


def _build_request(choices: Sequence[tf.Tensor]) -> Request:
    seed, request, *rest = choices
    processing, rest = Processing(*rest[: len(Processing._fields)]), rest[len(Processing._fields) :]
    bias, costs = rest[0], Costs(*rest[1:]) if len(rest) > 1 else ()
    return Request(seed, request[tf.newaxis], processing, bias, costs, is_plain(processing, bias))


def _name_outputs(drawn: Generated) -> dict[str, tf.Tensor]:
    names = ("tokens", "lengths", "log_probs", "unprocessed_log_probs", "is_ended", "is_finite")
    counts = {
        name: value for name, value in drawn.counts._asdict().items() if name in _COUNTS and value.shape.num_elements()
    }
    return {**{name: getattr(drawn, name) for name in names}, **counts}


def _name_block(block: Block) -> dict[str, tf.Tensor]:
    outputs = block._asdict()
    first = zip(("first_target", "first_drafter"), outputs.pop("first"), strict=False)
    return {**outputs, **dict(first)}


def _name_states(state: Any) -> dict[str, tf.Tensor]:
    return {f"state_{i}": value for i, value in enumerate(tf.nest.flatten(state))}


def _state_specs(state: Any) -> list[tf.TensorSpec]:
    return [_spec(f"state_{i}", part.shape, part.dtype) for i, part in enumerate(tf.nest.flatten(state))]


def _spec(name: str, shape: Any = (), dtype: tf.DType = tf.int32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name)

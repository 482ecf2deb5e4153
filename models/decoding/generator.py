"""Decodes texts in TensorFlow: prompts as lists of token ids in, tokens with log-probabilities and acceptance out.

    from models.decoding import Choices, Generator, ModelDrafter
    generator = Generator(model, weights, "block", ModelDrafter(small, small_weights), draft_length=4)
    result = generator([[1, 17, 4]], Choices(max_new_tokens=40, seed=3))
    print(result.tokens[0], result.total)

`models.device` does the same with exported files, without TensorFlow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding.acceptance import Acceptance
from models.decoding.block_decoder import Block, Request, is_plain
from models.decoding.choices import LONGEST_TEXT, Choices, Costs, Processing, check_costs, check_ids, require_integer
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter, ModelDrafter
from models.decoding.first_acceptance import first_acceptance
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.loop import Ends, Generated, Progress, begin, generate, repeat_rows
from models.decoding.numpy_ops import seed_words
from models.decoding.numpy_processing import make_bias
from models.decoding.tree_speculation import TreeSpeculation
from models.language_model import LanguageModel, Weights

LONGEST_STOP = 16
"""Maximum number of tokens of a stop sequence."""


@dataclass(frozen=True)
class Result:
    """Holds what one call gave for each prompt.

    Attributes:
      tokens: the token ids of each row, the stop token included.
      log_probs: log-probability of each token under the target's processed distribution.
      unprocessed_log_probs: the same under the target's softmax before any processing.
      is_ended: whether each row ends with the stop token or a stop sequence.
      acceptance: what became of the drafts of each row.
      progress: the state from which `Generator.resume` continues.
      request: what was asked for; `Generator.resume` asks for the same.
      generator: the generator that made the result.
    """

    tokens: list[list[int]]
    log_probs: list[list[float]]
    unprocessed_log_probs: list[list[float]]
    is_ended: list[bool]
    acceptance: list[Acceptance]
    progress: Progress = field(repr=False)
    request: Request = field(repr=False)
    generator: "Generator" = field(repr=False)

    @property
    def total(self) -> Acceptance:
        """Returns the acceptance of all rows together."""
        return Acceptance.total(self.acceptance)


class Generator:
    """Decodes batches of prompts with a target and, except for decoding "autoregressive", a drafter.

    The text of a row depends on its prompt, the choices and its request number, and on nothing else: not on the other
    rows, nor on how it is divided among calls, as far as the logits do not (a model may round otherwise in a larger
    batch). Its distribution is the target's, whatever the drafter. With decoding
    "invariant" the text itself does not depend on the drafter or the draft length, as far as the target's logits do not
    depend on how many tokens it reads at once (docs/systems/couplings.md).

    The first call for each size of batch builds a graph, which takes seconds.

    Args:
      model: the target.
      weights: its weights by name.
      decoding: one of `models.decoding.choices.DECODINGS`.
      drafter: what drafts, with the target's vocabulary; for "blockwise" a `HeadsDrafter`, a `LatticeDrafter` or None.
      draft_length: number of tokens that the drafter proposes per block, >= 1 with a drafter; not for "tree". For
        "blockwise" at most one less than the model has heads.
      automatic: whether draft lengths from 0 to `draft_length` are chosen by the costs of each call.
      num_drafts: number of drafts of `draft_length` tokens of decoding "spectr", >= 1.
      tree: number of children by depth of the drafted tree of decoding "tree".
      paths: number of best paths that a `LatticeDrafter` drafts for decoding "blockwise", >= 1.
      max_prompt: maximum number of tokens of a prompt, 1 to 2**16.
      max_new_tokens: maximum number of new tokens per call, 1 to 2**16. Prompt and new tokens of all calls for it have
        room for `max_prompt` + `max_new_tokens`.

    Raises:
      ValueError: an option is outside its range, a weight is missing, the drafter has another vocabulary, or the tokens
        do not fit in the model's context or that of the drafter's model.
    """

    def __init__(
        self,
        model: LanguageModel,
        weights: Weights,
        decoding: str = "autoregressive",
        drafter: Drafter | None = None,
        draft_length: int = 0,
        *,
        automatic: bool = False,
        num_drafts: int = DraftOptions.num_drafts,
        tree: Sequence[int] = DraftOptions.tree,
        paths: int = DraftOptions.paths,
        max_prompt: int = 64,
        max_new_tokens: int = 128,
    ) -> None:
        max_prompt = require_integer("max_prompt", max_prompt, 1, LONGEST_TEXT)
        max_new_tokens = require_integer("max_new_tokens", max_new_tokens, 1, LONGEST_TEXT)
        options = DraftOptions(draft_length, automatic, num_drafts, tree, paths)
        missing = sorted(model.shapes().keys() - weights.keys())
        if missing:
            raise ValueError(f"weights: {missing[0]!r} is missing; give the weights that were trained with this model")
        if drafter is not None and not isinstance(drafter, Drafter):
            raise ValueError(f"drafter = {type(drafter).__name__}: must be a Drafter; wrap a model in ModelDrafter")
        self.max_prompt, self.max_new_tokens = max_prompt, max_new_tokens
        # The last block of a row may give more tokens than were asked for, and while others are drawn one more is read.
        drafted = options.depth(decoding) + options.count(decoding)
        room = max_prompt + max_new_tokens + drafted
        proposing = drafter.rescorer if isinstance(drafter, HeadsDrafter) else drafter
        known = proposing.model.context if isinstance(proposing, ModelDrafter) else None
        name = "drafter" if proposing is drafter else "rescorer"
        if proposing is not None:
            _require_vocabulary(name, proposing, model.vocabulary_size)
        for owner, context in (("model", model.context), (name, known)):
            if context is not None and room > context:
                raise ValueError(
                    f"max_prompt = {max_prompt}, max_new_tokens = {max_new_tokens} and {drafted} drafted tokens of two "
                    f"blocks do not fit together in the {owner}'s context of {context} tokens: lower them"
                )
        # Arrays would be constants of the graphs, which TensorFlow copies: 20 GB for 0.5 GB of weights. From constants
        # of zeros, as in heads that are not trained, its graph optimiser even makes outputs without any row.
        weights = {name: tf.convert_to_tensor(weight) for name, weight in weights.items()}
        drafter = None if drafter is None else drafter.deploy(None, tf.convert_to_tensor, is_int8=False)
        self._decoder = decoder = build_decoder(decoding, model.fit(room), weights, drafter, options)

        rule = decoder.rule if isinstance(decoder, TreeSpeculation) else None
        self._is_best = rule is not None and rule.is_best
        compare = partial(_compare, num_drafts=options.num_drafts) if decoding == "spectr" else None

        def proceed(progress: Progress, request: Request, ends: Ends) -> Generated:
            words = decoder.words(request, progress.state.position, max_new_tokens)
            return generate(decoder, progress, request, ends, words, compare)

        def start(tokens: tf.Tensor, lengths: tf.Tensor, request: Request, ends: Ends) -> Generated:
            state = decoder.read(tokens, lengths - 1, decoder.initial_state(tokens.shape[0]))
            state = decoder.begin(tf.gather(tokens, lengths - 1, axis=1, batch_dims=1), state)
            state = repeat_rows(state, request.request.shape[0] // tokens.shape[0])
            return proceed(begin(decoder, state, LONGEST_STOP - 1), request, ends)

        self._start = tf.function(start, autograph=False)
        self._proceed = tf.function(proceed, autograph=False)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        choices: Choices | None = None,
        *,
        requests: Sequence[int] | None = None,
        num_samples: int = 1,
        stop_sequences: Sequence[Sequence[int]] = (),
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        costs: Costs | None = None,
    ) -> Result:
        """Decodes prompts up to `choices.max_new_tokens`, the stop token or a stop sequence.

        Args:
          prompts: token ids of each prompt, 1 to `max_prompt`.
          choices: how to draw; those of `Choices()` if None.
          requests: number of each row's request; None: `choices.request`, `choices.request` + 1, …
          num_samples: number of texts of each prompt, >= 1. Each prompt is read once. Its texts are successive rows,
            and each is the text of its request number.
          stop_sequences: sequences of 1 to `LONGEST_STOP` token ids after which a row ends. They may lie across blocks
            and calls, not across the end of the prompt.
          bias: token id -> number that is added to the token's logit, -1e6 to 1e6; -inf bans the token.
          banned: ids of tokens that are never drawn.
          costs: the times of a block; needed, and only allowed, with automatic draft lengths.

        Raises:
          ValueError: an argument is outside its range, or a row's logits are not finite or leave no token.
        """
        tokens, lengths, request, ends = self._prepare(
            prompts, choices, requests, num_samples, stop_sequences, bias, banned, costs
        )
        return self._result(self._start(tokens, lengths, request, ends), request)

    def _prepare(
        self,
        prompts: Sequence[Sequence[int]],
        choices: Choices | None,
        requests: Sequence[int] | None = None,
        num_samples: int = 1,
        stop_sequences: Sequence[Sequence[int]] = (),
        bias: Mapping[int, float] | None = None,
        banned: Sequence[int] = (),
        costs: Costs | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, Request, Ends]:
        """Returns the inputs of the first graph, after checks."""
        choices = _require_choices(choices)
        size = self._decoder.model.vocabulary_size
        tokens, lengths = _pad(prompts, self.max_prompt, size)
        if costs is not None:
            check_costs(costs)
        if (costs is not None) != self._decoder.automatic:
            raise ValueError(
                f"costs = {costs!r}: {'needed' if costs is None else 'only'} with automatic draft lengths; "
                f"{'measure and give them' if costs is None else 'drop them'}"
            )
        rows = len(prompts) * require_integer("num_samples", num_samples, 1)
        numbers = range(choices.request, choices.request + rows) if requests is None else requests
        numbers = check_ids("requests", numbers, 1 << 31, "request number")
        if len(numbers) != rows:
            raise ValueError(f"requests = {numbers!r}: must be one number for each of {rows} texts")
        row = make_bias(size, bias, banned)
        processing = Processing(
            *(
                tf.constant(value, tf.int32 if name == "top_k" else tf.float32)
                for name, value in choices.processing._asdict().items()
            )
        )
        shift = tf.constant(np.zeros(size, np.float32) if row is None else row)
        request = Request(
            tf.constant(seed_words(choices.seed)),
            tf.constant(numbers, tf.int32),
            processing,
            shift,
            () if costs is None else Costs(*(tf.constant(cost, tf.float32) for cost in costs)),
            is_plain(processing, shift),
        )
        return tokens, lengths, request, self._ends(choices, stop_sequences)

    def resume(
        self, result: Result, choices: Choices | None = None, *, stop_sequences: Sequence[Sequence[int]] = ()
    ) -> Result:
        """Continues all rows of a result, also those that ended, as one uninterrupted call would have.

        Args:
          result: what an earlier call returned.
          choices: `max_new_tokens` and `stop` are taken from here, all else from the first call.
          stop_sequences: as for a call.

        Raises:
          ValueError: an argument is outside its range, the rows would exceed `max_new_tokens` of the generator, or a
            row's logits are not finite or leave no token.
        """
        if result.generator is not self:
            raise ValueError("result: of another generator; resume it with the one that made it")
        ends = self._ends(_require_choices(choices), stop_sequences)
        state, pending = result.progress
        room = self.max_prompt + self.max_new_tokens - int(tf.reduce_max(state.position - pending.count))
        if int(ends.max_new) > room:
            raise ValueError(
                f"max_new_tokens = {int(ends.max_new)}: the longest row has room for {room} more; ask for fewer"
            )
        return self._result(self._proceed(result.progress, result.request, ends), result.request)

    def stream(
        self, prompts: Sequence[Sequence[int]], choices: Choices | None = None, *, every: int = 1, **options: Any
    ) -> Iterator[list[list[int]]]:
        """Yields the new tokens of each row, at most `every` at a time; together they are those of one call.

        Args:
          prompts: as for a call.
          choices: as for a call.
          every: number of tokens, >= 1.
          **options: as for a call.

        Raises:
          ValueError: as for a call; for the logits, from the iterator.
        """
        every = require_integer("every", every, 1)
        return self._stream(*self._prepare(prompts, choices, **options), every)

    def _stream(
        self, tokens: tf.Tensor, lengths: tf.Tensor, request: Request, ends: Ends, every: int
    ) -> Iterator[list[list[int]]]:
        result, ended = None, np.zeros(len(lengths), bool)
        for left in range(int(ends.max_new), 0, -every):
            part = ends._replace(max_new=tf.constant(min(every, left)))
            if result is None:
                result = self._result(self._start(tokens, lengths, request, part), request)
            else:
                result = self._result(self._proceed(result.progress, request, part), request)
            yield [[] if done else new for new, done in zip(result.tokens, ended, strict=True)]
            ended |= result.is_ended
            if ended.all():
                return

    def _ends(self, choices: Choices, stop_sequences: Sequence[Sequence[int]]) -> Ends:
        if choices.max_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens = {choices.max_new_tokens}: the generator was made for {self.max_new_tokens}; ask for "
                "fewer, or make another generator"
            )
        size = self._decoder.model.vocabulary_size
        if choices.stop >= size:
            raise ValueError(f"stop = {choices.stop}: must be a token id from 0 to {size - 1}, or -1 for none")
        _require_list("stop_sequences", stop_sequences)
        sequences = np.full([len(stop_sequences), LONGEST_STOP], -1, np.int32)
        for row, sequence in zip(sequences, stop_sequences, strict=True):
            ids = check_ids("stop_sequences", sequence, size)
            if len(ids) > LONGEST_STOP:
                raise ValueError(f"stop_sequences = {ids!r}: must be at most {LONGEST_STOP} token ids; shorten it")
            row[-len(ids) :] = ids
        return Ends(tf.constant(choices.max_new_tokens), tf.constant(choices.stop), tf.constant(sequences))

    def _result(self, generated: Generated, request: Request) -> Result:
        lengths = generated.lengths.numpy()
        if not np.all(generated.is_finite):
            row = int(np.argmin(generated.is_finite))
            raise ValueError(
                f"logits of row {row} after {lengths[row]} new tokens are not finite, or bias and banned leave no "
                "token: the model is damaged or diverged, or allow at least one token"
            )
        counts = {name: value.numpy() for name, value in generated.counts._asdict().items() if len(value)}
        rows = range(len(lengths))

        def cut(values: tf.Tensor) -> list[list[Any]]:
            return [row[:length].tolist() for row, length in zip(values.numpy(), lengths, strict=True)]

        return Result(
            cut(generated.tokens),
            cut(generated.log_probs),
            cut(generated.unprocessed_log_probs),
            generated.is_ended.numpy().tolist(),
            [
                Acceptance.from_counts({name: values[row : row + 1] for name, values in counts.items()}, self._is_best)
                for row in rows
            ],
            generated.progress,
            request,
            self,
        )


def _compare(block: Block, num_drafts: int) -> tf.Tensor:
    """Returns the acceptance of a first token by K-SEQ and by the best rule, float64 `[B, 2]`."""
    target, drafter = block.first
    return first_acceptance(target, drafter, num_drafts)


def _require_vocabulary(name: str, drafter: Drafter, size: int) -> None:
    logits, _ = drafter.step(tf.zeros([1], tf.int32), drafter.initial_state(1))
    if logits.shape[-1] != size:
        raise ValueError(
            f"{name} proposes from {logits.shape[-1]:,} tokens, but the target's vocabulary has {size:,}: give a "
            "drafter with the target's vocabulary, or a SharedVocabularyDrafter"
        )


def _require_choices(choices: Choices | None) -> Choices:
    if choices is not None and not isinstance(choices, Choices):
        raise ValueError(f"choices = {choices!r}: must be Choices(...), or None")
    return Choices() if choices is None else choices


def _require_list(name: str, values: Any) -> None:
    if not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} = {values!r}: must be a list of lists of token ids")


def _pad(prompts: Sequence[Sequence[int]], longest: int, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns prompts as int32 `[B, longest]` and their lengths, after checks."""
    _require_list("prompts", prompts)
    if not len(prompts):
        raise ValueError("prompts: must be at least one list of token ids")
    tokens = np.zeros([len(prompts), longest], np.int32)
    for row, prompt in enumerate(prompts):
        ids = check_ids(f"prompt {row}", prompt, size)
        if len(ids) > longest:
            raise ValueError(
                f"prompt {row} has {len(ids)} tokens: must have at most max_prompt = {longest}; shorten it, or make "
                "another generator"
            )
        tokens[row, : len(ids)] = ids
    return tf.constant(tokens), tf.constant([len(prompt) for prompt in prompts], tf.int32)

"""The tokens of many requests through the real loop have exactly the target's joint distribution; bugs show in it.

All tests are Pearson's, on all texts of G + 2 tokens, at significance level 1e-6 with fixed seeds: of the fifty cases,
slow ones included, a right loop fails one with probability 5e-5.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import methods, numpy_ops, prng
from models.decoding import speculation as speculation_module
from models.decoding.block_decoder import BlockDecoder, Request
from models.decoding.choices import Costs, Processing
from models.decoding.drafters import ModelDrafter
from models.decoding.history import block_histories
from models.decoding.loop import Ends, begin, generate
from models.decoding.methods import Speculative, build_method
from models.decoding.numpy_ops import Stream
from models.decoding.numpy_processing import History, process
from models.decoding.speculation import Speculation
from tests.models.decoding.runs import Hesitant
from tests.models.decoding.table_model import TableModel
from tests.oracles import pearson

SIZE, PROMPT, ZERO = 3, [1, 2], -200.0  # exp(-200) is 0 in float32, and in the integer weights that tokens are drawn by
PENALTIES = Processing(temperature=0.8, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.7)
TOP_K = Processing(temperature=1.3, top_k=2)
METHODS = ("autoregressive", "speculative", "block", "greedy-block", "invariant")


def draw_models():
    """Returns the target's and the drafter's logits after each pair of tokens; the drafter's ranks are the reverse."""
    generator = np.random.default_rng(3)
    ranked = np.sort(generator.normal(0, 1.2, [SIZE, SIZE, SIZE]), axis=-1)
    order = np.argsort(generator.random(ranked.shape), axis=-1)
    target = np.take_along_axis(ranked, order, -1)
    drafter = np.take_along_axis(ranked[..., ::-1] * 0.7, order, -1)
    target[0, 1, 2] = target[2, 2, 0] = ZERO
    drafter[1, 2, 1] = drafter[2, 0, 0] = ZERO
    return target, drafter


TABLES = draw_models()
TARGET: Any = TableModel(TABLES[0])
DRAFTER: Any = TableModel(TABLES[1])


@dataclass(frozen=True)
class Case:
    """Says how many texts are drawn, and how."""

    method: str
    draft_length: int
    hesitant: bool = False
    automatic: bool = False
    processing: Processing = Processing()
    stop: int = -1
    sequence: tuple[int, ...] = ()
    rows: int = 1 << 14

    @property
    def count(self):
        return self.draft_length + 2

    def __str__(self):
        names = [name for name in ("hesitant", "automatic", "sequence") if getattr(self, name)]
        names += ["penalties"] * (self.processing == PENALTIES) + ["top-k"] * (self.processing == TOP_K)
        names += ["stop"] * (self.stop >= 0)
        return "-".join([self.method, str(self.draft_length), *names])

    def drafter(self) -> Any:
        if self.hesitant:
            return Hesitant(DRAFTER, tf.constant(DRAFTER.table), tf.constant([False, True, False]))
        return ModelDrafter(DRAFTER, {})

    def build(self) -> BlockDecoder:
        """Returns target, drafter and method."""
        has_drafter = self.method != "autoregressive"
        return Speculation(
            TARGET,
            {},
            build_method(self.method),
            self.drafter() if has_drafter else None,
            self.draft_length if has_drafter else 0,
            automatic=self.automatic,
            penalties=self.processing != Processing(),
            log_probs=False,
        )


def is_end(text, case):
    ends_in_sequence = case.sequence and text[-len(case.sequence) :] == case.sequence
    return len(text) == case.count or text[-1] == case.stop or ends_in_sequence


@functools.cache
def exact_law(case):
    """Returns text -> probability, by enumeration; a text ends at `count` tokens, the stop token or the sequence."""
    law: dict[tuple[int, ...], float] = {}

    def grow(text, probability):
        history = History(np.isin(np.arange(SIZE), PROMPT), np.bincount(text, minlength=SIZE).astype(np.int32))
        processed = process(TARGET.logits([*PROMPT, *text]), case.processing, history)
        weights = numpy_ops.weights(processed).astype(np.float64)
        for token in np.flatnonzero(weights).tolist():
            longer, share = (*text, token), probability * weights[token] / weights.sum()
            if is_end(longer, case):
                law[longer] = share
            else:
                grow(longer, share)

    grow((), 1.0)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    return law


def draw(case):
    """Draws one text per request with the loop, in eager mode, so that nothing is traced."""
    own, rows = case.build(), case.rows
    # Such costs make rows draft nothing, or all tokens, by what became of their earlier drafts.
    costs = Costs(tf.constant(1.0), tf.constant(1.3), tf.constant(0.35))
    asked = Request(tf.constant([11, 12]), tf.range(rows), case.processing, costs=costs if case.automatic else ())
    state = own.initial_state(rows)
    state = own.read(tf.fill([rows, 1], PROMPT[0]), tf.ones([rows], tf.int32), state)
    tail = max(len(case.sequence) - 1, 0)
    progress = begin(own, own.begin(tf.fill([rows], PROMPT[1]), state), tail)
    sequences = tf.constant([case.sequence] if case.sequence else np.zeros([0, 1]), tf.int32)
    where = Ends(tf.constant(case.count), tf.constant(case.stop), sequences)
    found = generate(own, progress, asked, where, own.words(asked, progress.state.position, case.count))
    return found, [tuple(row[:n]) for row, n in zip(found.tokens.numpy().tolist(), found.lengths.numpy(), strict=True)]


def p_value(case):
    """Returns the p-value of Pearson's test; 0 if a text occurs that cannot."""
    law = exact_law(case)
    number = {text: i for i, text in enumerate(law)}
    _, texts = draw(case)
    if not set(texts) <= number.keys():
        return 0.0
    observed = np.bincount([number[text] for text in texts], minlength=len(law)).astype(np.float64)
    expected = case.rows * np.array(list(law.values()))
    is_rare = expected < 10
    if is_rare.any():
        observed, expected = (np.append(counts[~is_rare], counts[is_rare].sum()) for counts in (observed, expected))
    return pearson.p_value(observed, expected)


# An exponential race needs a number per token, of at least 256 tokens.
FEW = 1 << 12
BARE = [Case(method, 2, rows=FEW if method == "invariant" else 1 << 14) for method in METHODS]
BARE += [Case("block", 3), Case("greedy-block", 3), Case("speculative", 2, processing=TOP_K)]
ALL = [
    Case(
        method,
        2,
        hesitant=method != "autoregressive",
        automatic=method not in ("autoregressive", "greedy-block"),
        processing=PENALTIES,
        stop=2 if method in ("block", "invariant") else -1,
        sequence=(0, 1) if method in ("speculative", "greedy-block") else (),
        rows=FEW if method == "invariant" else 1 << 14,
    )
    for method in METHODS
]
FEATURES: tuple[dict[str, Any], ...] = (
    {"hesitant": True},
    {"automatic": True},
    {"processing": PENALTIES},
    {"processing": TOP_K},
    {"stop": 1, "sequence": (0, 2)},
)
EACH = [
    replace(Case(method, length, rows=1 << (15 if method == "invariant" else 17)), **feature)
    for method in METHODS[1:]
    for length in (2, 3)
    for feature in FEATURES
    if not (method == "greedy-block" and "automatic" in feature)
]


@pytest.mark.parametrize("case", [*BARE, *ALL], ids=str)
def test_joint_law_of_the_loop_is_that_of_the_target(case):
    assert p_value(case) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH, ids=str)
def test_joint_law_of_the_loop_is_that_of_the_target_with_each_option_alone(case):
    assert p_value(case) > 1e-6


def test_automatic_lengths_of_the_cases_vary():
    found, _ = draw(Case("block", 3, automatic=True, rows=2000))
    drafted = found.counts.drafted.numpy().sum(axis=0)
    assert 0 < drafted[-1] < drafted[0] < found.counts.calls.numpy().sum()


def keys_by_position(patch):
    """Plants a bug: words of a draft are keyed by the positions of its tokens."""

    def words(seed, request, start, draft_length):
        own = prng.block_words(seed, request, start, draft_length)
        places = start[..., tf.newaxis] + tf.range(draft_length)
        return own._replace(draft=prng.random_words(seed, Stream.DRAFT, request[..., tf.newaxis], places))

    patch.setattr(methods, "block_words", words)


def shared_stream(patch):
    """Plants a bug: the token after a rejection is drawn with the words of the first drafted token."""

    def words(*arguments):
        own = prng.block_words(*arguments)
        return own._replace(residual=tuple(word[..., 0] for word in own.draft))

    patch.setattr(methods, "block_words", words)


def unprocessed_drafter(patch):
    """Plants a bug: verifies with the drafter's distribution before its temperature of 0.8."""
    right = Speculative.draw

    def draw(self, processed, noise, place):
        return right(self, processed, noise, place)._replace(law=tf.nn.softmax(processed * 0.8))

    patch.setattr(Speculative, "draw", draw)


def last_history(patch):
    """Plants a bug: every position of a block is processed with the history of the last one."""

    def histories(history, tokens):
        right = block_histories(history, tokens)
        return right._replace(counts=tf.repeat(right.counts[:, -1:], right.counts.shape[1], axis=1))

    patch.setattr(speculation_module, "block_histories", histories)


def stale_drafter(patch):
    """Plants a bug: after a rejection the drafter goes on from the end of its draft."""
    patch.setattr(ModelDrafter, "rewind", lambda self, states, kept: states[-1])


def peeking_length(patch):
    """Plants a bug: a draft ends before its first token 0."""
    right = Speculation.draft

    def draft(self, *arguments):
        own = right(self, *arguments)
        before = tf.math.cumprod(tf.cast(tf.not_equal(own.tokens, 0), tf.int32), axis=1)
        return own._replace(lengths=tf.minimum(own.lengths, tf.reduce_sum(before, axis=1)))

    patch.setattr(Speculation, "draft", draft)


BUGS = [
    (keys_by_position, Case("block", 2, rows=1 << 15)),
    (shared_stream, Case("speculative", 2)),
    (unprocessed_drafter, Case("speculative", 2, processing=Processing(temperature=0.8))),
    (last_history, Case("block", 2, processing=PENALTIES)),
    # Only greedy block needs the drafter's distributions of a text to be the same in the next block.
    (stale_drafter, Case("greedy-block", 3)),
    (peeking_length, Case("block", 2)),
]


@pytest.mark.parametrize(("plant", "case"), BUGS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_joint_law_shows_a_planted_bug(plant, case, monkeypatch):
    plant(monkeypatch)
    assert p_value(case) < 1e-6

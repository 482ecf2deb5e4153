"""Drafts of prediction heads: the text is the base model's, whatever heads and rescorer."""

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import katz
from models.decoding.block_decoder import Request
from models.decoding.choices import Choices, Processing
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter, ModelDrafter
from models.decoding.generator import Generator
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.hidden_state import HiddenState, WithHidden
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from models.heads import HeadedLanguageModel
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from tests.models.decoding.drafter_tests import SLOW_BATCHES, DrafterTests

SIZE, HEADS = 23, 4
BASES: dict[str, Any] = {
    "recurrent": RecurrentLanguageModel("si-cifg", SIZE, embedding=16, units=8),
    "transformer": TransformerLanguageModel(SIZE, embedding=8, blocks=2, heads=2, feed_forward=8, context=64),
}
PROMPTS, NEW = [[3, 1, 4], [5], [2, 2]], 16


@functools.cache
def draw_model(family, seed=1):
    """Draws a base model, and fits heads that often draft its greedy texts after the prompts."""
    model = HeadedLanguageModel(BASES[family], HEADS)
    weights: dict[str, Any] = {name: 2 * np.asarray(value) for name, value in model.init(seed).items()}
    base, _ = model.split(weights)
    texts = [[*prompt, *likeliest(model, weights, prompt, NEW)] for prompt in PROMPTS]
    read = [model.base.extend_with_hidden(base, tf.constant([text]), model.base.initial_state(1))[1] for text in texts]
    for head in range(2, HEADS + 1):
        hidden = np.concatenate([row[0, : 1 - head] for row in read])
        ahead = np.concatenate([row[0, head - 1 :] for row in read])
        inner = hidden @ weights[f"head_{head}.inner"]
        fitted, *_ = np.linalg.lstsq(inner / (1 + np.exp(-inner)), ahead - hidden, rcond=None)
        weights[f"head_{head}.outer"] = fitted.astype(np.float32)
    return model, weights


def rescorer(seed=5):
    model: Any = RecurrentLanguageModel("si-cifg", SIZE, embedding=4, units=5)
    return ModelDrafter(model, {name: 4 * np.asarray(value) for name, value in model.init(seed).items()})


def likeliest(model, weights, prompt, count):
    text = list(prompt)
    for _ in range(count):
        logits, _ = model.base.extend(weights, tf.constant([text]), model.base.initial_state(1))
        text.append(int(tf.argmax(logits[0, -1])))
    return text[len(prompt) :]


GREEDY: list[Any] = [
    ("recurrent", "blockwise", HeadsDrafter(rescorer(), top_k=5, alpha=0.7), {"draft_length": 3}),
    ("transformer", "tree", HeadsDrafter(), {"tree": (2, 2)}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("transformer", "blockwise", None, {"draft_length": 3}),
            ("recurrent", "tree", HeadsDrafter(rescorer(), top_k=5), {"tree": (2, 1)}),
            ("transformer", "spectr", HeadsDrafter(), {"draft_length": 2, "num_drafts": 2}),
            ("recurrent", "greedy-block", HeadsDrafter(), {"draft_length": 2}),
            ("transformer", "block", HeadsDrafter(rescorer(), top_k=5), {"draft_length": 3}),
        )
    ),
]


@pytest.mark.parametrize(("family", "decoding", "drafter", "sizes"), GREEDY)
def test_greedy_text_is_the_base_models(family, decoding, drafter, sizes):
    model, weights = draw_model(family)
    generator = Generator(model, weights, decoding, drafter, max_prompt=3, max_new_tokens=NEW, **sizes)
    found = generator(PROMPTS, Choices(NEW, temperature=0.0))
    assert found.tokens == [likeliest(model, weights, prompt, NEW) for prompt in PROMPTS]
    assert_some_drafts_are_accepted(found)


def assert_some_drafts_are_accepted(found):
    """So many that states which are taken back to the wrong place would show in the text."""
    assert found.total.block_efficiency > 1.2


@pytest.mark.parametrize("family", ["recurrent", pytest.param("transformer", marks=pytest.mark.slow)])
def test_text_ends_at_a_stop_token_or_sequence_wherever_it_lies_in_a_block(family):
    model, weights = draw_model(family)
    generator = Generator(model, weights, "blockwise", HeadsDrafter(), 3, max_prompt=3, max_new_tokens=NEW)
    whole = generator(PROMPTS, Choices(NEW, temperature=0.0))
    inside = 0  # number of texts that end before the end of a block
    for stop in sorted(set(sum(whole.tokens, []))):
        found = generator(PROMPTS, Choices(NEW, temperature=0.0, stop=stop))
        for text, own, is_ended in zip(whole.tokens, found.tokens, found.is_ended, strict=True):
            end = text.index(stop) + 1 if stop in text else NEW
            assert own == text[:end] and is_ended == (stop in text)
        inside += count_inside(found)
    assert inside > 0
    inside = 0
    for begin in range(NEW - 2):
        sequence = whole.tokens[0][begin : begin + 3]
        found = generator(PROMPTS, Choices(NEW, temperature=0.0), stop_sequences=[sequence])
        for text, own in zip(whole.tokens, found.tokens, strict=True):
            ends = [end for end in range(3, NEW + 1) if text[end - 3 : end] == sequence]
            assert own == text[: min(ends, default=NEW)]
        inside += count_inside(found)
    assert inside > 0


def count_inside(found):
    """Returns how many texts end before the end of their last block, whose tokens all count as decided."""
    parts = zip(found.tokens, found.is_ended, found.acceptance, strict=True)
    return sum(is_ended and part.decided > len(tokens) for tokens, is_ended, part in parts)


class Begun(Drafter):
    """Drafts with heads after a fixed hidden state; its state is that within a block, which begins after each rewind.

    Args:
      drafter: a `HeadsDrafter` that is bound to a model.
      hidden: float32 `[1, E]`, the hidden state.
    """

    def __init__(self, drafter, hidden):
        self.drafter, self.hidden = drafter, hidden

    def begun(self, state, batch):
        return self.drafter.begin(state, HiddenState((), tf.repeat(self.hidden, batch, axis=0)))

    def initial_state(self, batch):
        return self.begun(self.drafter.initial_state(batch), batch)

    def prefill(self, tokens, lengths, state):
        return self.begun(self.drafter.prefill(tokens, lengths, state.rescorer), tokens.shape[0])

    def step(self, tokens, state):
        return self.drafter.step(tokens, state)

    def rewind(self, states, kept):
        return self.begun(self.drafter.rewind(states, kept), states[0].logits.shape[0])

    def step_level(self, tokens, trail, tree, level):
        return self.drafter.step_level(tokens, trail, tree, level)

    def rewind_tree(self, trail, kept, tree):
        return self.begun(self.drafter.rewind_tree(trail, kept, tree), trail.logits.shape[0])


class TestHeads(DrafterTests):
    """What is compared begins a block, because the heads' logits depend on the place in it."""

    size = SIZE

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

    @pytest.fixture
    def drafter(self):
        model, weights = draw_model("recurrent")
        hidden = np.random.default_rng(0).normal(size=(1, BASES["recurrent"].embedding)).astype(np.float32)
        own = HeadsDrafter(rescorer(), top_k=5, alpha=0.7)
        return Begun(own.bind(WithHidden.of(model), weights, HEADS - 1), tf.constant(hidden))

    def rows(self, state):
        parts = super().rows(state._replace(place=()))
        return [part._replace(place=state.place) for part in parts]

    def probe(self, drafter, states, seed=9):
        return super().probe(drafter, [drafter.begun(state.rescorer, 1) for state in states], seed)

    def gone_on(self, drafter, state):
        return super().gone_on(drafter, drafter.begun(state.rescorer, state.logits.shape[0]))


def check_laws(model, weights, drafter, expected_scores):
    """Draws blocks of two rows one by one, and compares every drafted token's law with that of a plain program."""
    own: Any = build_decoder("blockwise", model, weights, drafter, DraftOptions(HEADS - 1))
    asked = Request(tf.constant([1, 2]), tf.range(2), Processing(temperature=0.8))
    texts = [[3, 1, 4], [2, 2, 9]]
    state = own.read(tf.constant(texts)[:, :-1], tf.fill([2], 2), own.initial_state(2))
    state, counts = own.begin(tf.constant(texts)[:, -1], state), []
    for _ in range(5):
        words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
        draft = own.draft(state, asked, words)
        for row, text in enumerate(texts):
            for place in range(HEADS - 1):
                scores = expected_scores(text, draft.tokens[row, :place].numpy().tolist(), place)
                np.testing.assert_allclose(draft.laws[place][row], tf.nn.softmax(scores / 0.8), atol=2e-6)
        block, state = own.verify(state, draft, asked, tf.ones([2], tf.bool))
        counts.append(block.count.numpy())
        for row, text in enumerate(texts):
            text += block.tokens[row, : block.count[row]].numpy().tolist()
    assert np.max(counts) > 1  # some drafts are accepted, so that states are taken back to different places


@pytest.mark.parametrize("family", list(BASES))
def test_laws_are_those_of_the_heads_after_the_text_without_its_last_token(family):
    model, weights = draw_model(family)

    def scores(text, drafted, place):
        _, hidden, _ = model.extend_with_hidden(weights, tf.constant([text[:-1]]), model.initial_state(1))
        return model.head_logits(weights, hidden[:, -1])[0, place + 1]

    check_laws(model, weights, None, scores)


def test_rescored_laws_are_of_the_heads_likeliest_tokens_and_the_rescorers_logits():
    model, weights = draw_model("transformer")
    refining = rescorer()

    def scores(text, drafted, place):
        _, hidden, _ = model.extend_with_hidden(weights, tf.constant([text[:-1]]), model.initial_state(1))
        own = model.head_logits(weights, hidden[:, -1])[0, place + 1].numpy()
        small = refining.model
        read = tf.constant([[*text, *drafted]])
        other = small.extend(refining.weights, read, small.initial_state(1))[0][0, -1].numpy()
        kept = np.argsort(-own)[:5]
        refined = np.full(SIZE, -np.inf, np.float32)
        refined[kept] = own[kept] + np.float32(0.7) * other[kept]
        return refined

    check_laws(model, weights, HeadsDrafter(refining, top_k=5, alpha=0.7), scores)


@pytest.mark.slow
def test_without_weight_the_rescorer_changes_no_greedy_draft():
    model, weights = draw_model("recurrent")
    found = []
    for drafter in (None, HeadsDrafter(rescorer(), top_k=3, alpha=0.0)):
        generator = Generator(model, weights, "blockwise", drafter, 3, max_prompt=3, max_new_tokens=16)
        found.append(generator(PROMPTS, Choices(16, temperature=0.0)))
    assert found[0].tokens == found[1].tokens and found[0].acceptance == found[1].acceptance


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model, weights: Generator(model.base, weights, "blockwise", None, 2),
            "the model has no prediction heads",
        ),
        (lambda model, weights: Generator(model, weights, "blockwise", None, 4), "4 prediction heads draft at most 3"),
        (
            lambda model, weights: Generator(model, weights, "blockwise", rescorer(), 2),
            "wrap the drafter in HeadsDrafter",
        ),
        (lambda model, weights: HeadsDrafter(top_k=0), "^top_k_heads = 0: must be an integer >= 1"),
        (lambda model, weights: HeadsDrafter(alpha=float("nan")), "^alpha = nan: must be a number >= 0"),
        (lambda model, weights: HeadsDrafter(alpha=True), "^alpha = True: must be a number >= 0"),
        (lambda model, weights: LatticeDrafter(alpha="1"), "^alpha = '1': must be a number >= 0"),  # type: ignore[arg-type]
        (
            lambda model, weights: Generator(model, weights, "blockwise", HeadsDrafter(other_drafter(11)), 2),
            "^rescorer proposes from 11 tokens, but the target's vocabulary has 23: give a drafter with the target's",
        ),
        (
            lambda model, weights: Generator(model, weights, "blockwise", LatticeDrafter(katz_tables(2, SIZE + 1)), 2),
            "^tables: n-grams of 24 tokens cannot rescore the drafts of a model of 23: learn them with the model's",
        ),
        (
            lambda model, weights: Generator(
                model, weights, "blockwise", HeadsDrafter(other_drafter(SIZE)), 2, max_prompt=4, max_new_tokens=8
            ),
            "8 and 4 drafted tokens of two blocks do not fit together in the rescorer's context of 12 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, message):
    model, weights = draw_model("recurrent")
    with pytest.raises(ValueError, match=message):
        make(model, weights)


def other_drafter(size):
    """Returns a drafter with few token ids, or with room for few tokens."""
    model: Any = TransformerLanguageModel(size, embedding=4, blocks=1, heads=1, feed_forward=4, context=12)
    return ModelDrafter(model, model.init(0))


def katz_model(order, size=SIZE):
    generator = np.random.default_rng(4)
    texts = [generator.integers(3, SIZE, 40).tolist() for _ in range(30)]
    return katz.learn(texts, size, order)


def katz_tables(order, size=SIZE):
    return KatzTables(katz_model(order, size))


@pytest.mark.parametrize(
    ("family", "order", "paths"),
    [
        ("transformer", 2, 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("recurrent", 0, 1), ("recurrent", 3, 3))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("transformer", 0, 4), ("recurrent", 2, 1))),
    ],
)
def test_greedy_text_of_best_paths_is_the_base_models(family, order, paths):
    model, weights = draw_model(family)
    drafter = LatticeDrafter(katz_tables(order) if order else None, top_k=4, alpha=0.8)
    own = Generator(model, weights, "blockwise", drafter, 3, paths=paths, max_prompt=3, max_new_tokens=NEW)
    found = own(PROMPTS, Choices(NEW, temperature=0.0))
    assert found.tokens == [likeliest(model, weights, prompt, NEW) for prompt in PROMPTS]
    assert_some_drafts_are_accepted(found)


def test_heads_that_are_not_trained_draft_what_the_base_would():
    """Their weights are zeros, of which TensorFlow's graph optimiser could make outputs without any row."""
    model = HeadedLanguageModel(BASES["recurrent"], HEADS)
    found = Generator(model, model.init(0), "blockwise", None, 3, max_prompt=3, max_new_tokens=8)(PROMPTS, Choices(8))
    assert [len(tokens) for tokens in found.tokens] == [8, 8, 8]

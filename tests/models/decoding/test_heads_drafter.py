"""Drafts of prediction heads: the text is the base model's, whatever heads and rescorer."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import katz
from models.decoding.block_decoder import Request
from models.decoding.choices import Choices, Processing
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import ModelDrafter
from models.decoding.generator import Generator
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from models.heads import HeadedLanguageModel
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel

SIZE, HEADS = 23, 4
BASES: dict[str, Any] = {
    "recurrent": RecurrentLanguageModel("si-cifg", SIZE, embedding=6, units=8),
    "transformer": TransformerLanguageModel(SIZE, embedding=8, blocks=2, heads=2, feed_forward=8, context=64),
}
PROMPTS = [[3, 1, 4], [5], [2, 2]]


def draw_model(family, seed=1):
    model, generator = HeadedLanguageModel(BASES[family], HEADS), np.random.default_rng(seed)
    weights: dict[str, Any] = {name: 2 * np.asarray(value) for name, value in model.init(seed).items()}
    for name in weights:
        if name.endswith("outer"):
            weights[name] = generator.standard_normal(weights[name].shape).astype(np.float32) * 0.3
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
    generator = Generator(model, weights, decoding, drafter, max_prompt=3, max_new_tokens=16, **sizes)
    found = generator(PROMPTS, Choices(16, temperature=0.0))
    assert found.tokens == [likeliest(model, weights, prompt, 16) for prompt in PROMPTS]


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
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, message):
    model, weights = draw_model("recurrent")
    with pytest.raises(ValueError, match=message):
        make(model, weights)


def katz_model(order):
    generator = np.random.default_rng(4)
    texts = [generator.integers(3, SIZE, 40).tolist() for _ in range(30)]
    return katz.learn(texts, SIZE, order)


def katz_tables(order):
    return KatzTables(katz_model(order))


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
    own = Generator(model, weights, "blockwise", drafter, 3, paths=paths, max_prompt=3, max_new_tokens=16)
    found = own(PROMPTS, Choices(16, temperature=0.0))
    assert found.tokens == [likeliest(model, weights, prompt, 16) for prompt in PROMPTS]


def test_heads_that_are_not_trained_draft_what_the_base_would():
    """Their weights are zeros, of which TensorFlow's graph optimiser could make outputs without any row."""
    model = HeadedLanguageModel(BASES["recurrent"], HEADS)
    found = Generator(model, model.init(0), "blockwise", None, 3, max_prompt=3, max_new_tokens=8)(PROMPTS, Choices(8))
    assert [len(tokens) for tokens in found.tokens] == [8, 8, 8]

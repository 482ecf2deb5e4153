"""Drafts of prediction heads: the text is the base model's, whatever heads and rescorer."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.choices import Choices
from models.decoding.drafters import ModelDrafter
from models.decoding.generator import Generator
from models.decoding.heads_drafter import HeadsDrafter
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


@pytest.mark.parametrize("family", list(BASES))
@pytest.mark.parametrize(
    ("decoding", "drafter", "sizes"),
    [
        ("blockwise", None, {"draft_length": 3}),
        ("blockwise", HeadsDrafter(rescorer(), top_k=5, alpha=0.7), {"draft_length": 3}),
        ("tree", HeadsDrafter(), {"tree": (2, 2)}),
        ("tree", HeadsDrafter(rescorer(), top_k=5), {"tree": (2, 1)}),
        ("spectr", HeadsDrafter(), {"draft_length": 2, "num_drafts": 2}),
        ("greedy-block", HeadsDrafter(), {"draft_length": 2}),
        ("block", HeadsDrafter(), {"draft_length": 3}),
    ],
)
def test_greedy_text_is_the_base_models(family, decoding, drafter, sizes):
    model, weights = draw_model(family)
    generator = Generator(model, weights, decoding, drafter, max_prompt=3, max_new_tokens=16, **sizes)
    found = generator(PROMPTS, Choices(16, temperature=0.0))
    assert found.tokens == [likeliest(model, weights, prompt, 16) for prompt in PROMPTS]

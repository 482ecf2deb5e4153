"""Several texts after one prompt: each is the text of its own request, however they are drawn."""

from typing import Any

import numpy as np
import pytest

from models import device
from models.decoding.choices import Choices
from models.decoding.drafters import ModelDrafter
from models.decoding.generator import Generator
from models.export import export
from tests.models import exported

COUNT, PROMPT = 4, [1, 30, 40, 50]
MODEL = exported.model()
WEIGHTS = exported.weights(MODEL)
DRAFTER = ModelDrafter(MODEL, exported.weights(MODEL, 1))
CHOICES = Choices(max_new_tokens=12, temperature=0.9, top_p=0.95, seed=5, request=3)


DECODINGS: list[Any] = ["autoregressive", pytest.param("block", marks=pytest.mark.slow)]


def make(folder, decoding):
    path = folder / "model.tflite"
    limits: dict[str, Any] = {"max_prompt": 8, "max_new_tokens": 12}
    drafting: dict[str, Any] = {} if decoding == "autoregressive" else {"drafter": DRAFTER, "draft_length": 2}
    export(MODEL, WEIGHTS, exported.vocabulary(), path, decodings=(decoding,), best_of=COUNT, **limits, **drafting)
    return device.load(path)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_file_draws_the_texts_of_successive_requests_together(tmp_path, decoding):
    file = make(tmp_path, decoding)
    assert file.facts.best_of == COUNT
    with pytest.raises(ValueError, match="count = 0: must be an integer"):
        file.draw_samples(PROMPT, CHOICES, 0)
    together = file.draw_samples(PROMPT, CHOICES, COUNT)
    one_by_one = file.draw_samples(PROMPT, CHOICES, COUNT + 1)
    assert len({tuple(drawn["tokens"].tolist()) for drawn in together}) == COUNT
    for drawn, alone in zip(together, one_by_one, strict=False):
        assert drawn["tokens"].tolist() == alone["tokens"].tolist()
        np.testing.assert_allclose(drawn["log_probs"], alone["log_probs"], atol=1e-4)
        np.testing.assert_allclose(drawn["unprocessed_log_probs"], alone["unprocessed_log_probs"], atol=1e-4)
        assert drawn["is_ended"] == alone["is_ended"]


@pytest.mark.parametrize("decoding", DECODINGS)
def test_generator_repeats_each_prompt(decoding):
    prompts = [PROMPT, [1, 7]]
    drafting: dict[str, Any] = {"drafter": DRAFTER, "draft_length": 2} if decoding == "block" else {}
    generator = Generator(MODEL, WEIGHTS, decoding, **drafting, max_prompt=4, max_new_tokens=12)
    found = generator(prompts, CHOICES, num_samples=3)
    rows = [prompt for prompt in prompts for _ in range(3)]
    plain = generator(rows, CHOICES)
    assert found.tokens == plain.tokens
    np.testing.assert_allclose(np.concatenate(found.log_probs), np.concatenate(plain.log_probs), atol=1e-4)
    with pytest.raises(ValueError, match="num_samples = 0"):
        generator(prompts, CHOICES, num_samples=0)


@pytest.mark.slow
def test_transformer_repeats_its_state(tmp_path):
    """Its state has a cache and a length for each row."""
    from models.transformer.decoder import TransformerLanguageModel

    size = exported.vocabulary().size
    model = TransformerLanguageModel(size, embedding=16, blocks=2, heads=2, feed_forward=16, context=64)
    weights = {name: 3 * np.asarray(weight) for name, weight in model.init(0).items()}
    export(model, weights, exported.vocabulary(), tmp_path / "m.tflite", max_prompt=8, max_new_tokens=12, best_of=COUNT)
    file = device.load(tmp_path / "m.tflite")
    together = file.draw_samples(PROMPT, CHOICES, COUNT)
    one_by_one = file.draw_samples(PROMPT, CHOICES, COUNT + 1)
    assert [own["tokens"].tolist() for own in together] == [own["tokens"].tolist() for own in one_by_one[:COUNT]]
    rows = Generator(model, weights, max_prompt=8, max_new_tokens=12)([PROMPT], CHOICES, num_samples=COUNT)
    assert rows.tokens == [own["tokens"].tolist() for own in together]

"""A file whose model drafts with its own heads: graph, host and TensorFlow agree; greedy text is the base model's."""

from typing import Any

import numpy as np
import pytest

from models import device, katz
from models.decoding.choices import Choices
from models.decoding.drafters import ModelDrafter
from models.decoding.generator import Generator
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from models.decoding.ngram_drafter import NGramDrafter
from models.export import export
from models.heads import HeadedLanguageModel
from models.ngram import learn
from models.recurrent_lm import RecurrentLanguageModel
from models.vocabulary import BOS
from tests.models import exported

HEADS, MAX_PROMPT, MAX_NEW = 4, 8, 24
BASE = exported.model()
MODEL = HeadedLanguageModel(BASE, HEADS)
VOCABULARY = exported.vocabulary()
PROMPT = [BOS, *VOCABULARY.encode("the")]
TEXTS = [VOCABULARY.document(text) for text in ("the king and the other", "and the other one in there", "the night")]


def weights():
    generator = np.random.default_rng(2)
    drawn = dict(exported.weights(BASE))
    for name, value in MODEL.init_heads(1).items():
        drawn[name] = 0.1 * generator.standard_normal(value.shape).astype(np.float32)
    return dict(sorted(drawn.items()))


def rescored():
    return HeadsDrafter(NGramDrafter(learn(TEXTS, VOCABULARY.size, 3)), top_k=8, alpha=0.5)


def neural():
    small: Any = RecurrentLanguageModel("cifg", VOCABULARY.size, embedding=8, units=8)
    drawn = {name: 3 * np.asarray(value) for name, value in small.init(3).items()}
    return HeadsDrafter(ModelDrafter(small, drawn), top_k=8, alpha=0.5)


def best_paths():
    return LatticeDrafter(KatzTables(katz.learn(TEXTS, VOCABULARY.size, 2)), top_k=8, alpha=0.5)


CASES: list[Any] = [
    pytest.param(HeadsDrafter, {"decodings": ("blockwise",)}, id="heads", marks=pytest.mark.slow),
    pytest.param(rescored, {"decodings": ("blockwise",)}, id="rescored", marks=pytest.mark.slow),
    pytest.param(neural, {"decodings": ("blockwise",)}, id="neural", marks=pytest.mark.slow),
    pytest.param(best_paths, {"decodings": ("blockwise",), "paths": 3}, id="best paths"),
    pytest.param(HeadsDrafter, {"decodings": ("tree",), "tree": (2, 2)}, id="tree", marks=pytest.mark.slow),
    pytest.param(LatticeDrafter, {"decodings": ("blockwise",), "paths": 3}, id="0-gram", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("make_drafter", "sizes"), CASES)
def test_graph_host_and_tensorflow_give_the_same_tokens(tmp_path, make_drafter, sizes):
    limits: dict[str, Any] = {"max_prompt": MAX_PROMPT, "max_new_tokens": MAX_NEW, "draft_length": HEADS - 1}
    export(MODEL, weights(), VOCABULARY, tmp_path / "m.tflite", **limits, **sizes, drafter=make_drafter())
    file = device.load(tmp_path / "m.tflite")
    (decoding,), own = sizes["decodings"], {name: value for name, value in sizes.items() if name != "decodings"}
    generator = Generator(MODEL, weights(), decoding, make_drafter(), **limits, **own)
    base = Generator(BASE, MODEL.split(weights())[0], max_prompt=MAX_PROMPT, max_new_tokens=MAX_NEW)
    drafted = 0
    for seed in range(20):
        choices = Choices(max_new_tokens=MAX_NEW, temperature=0.0 if seed < 4 else 0.9, seed=seed)
        prompt = [*PROMPT, *TEXTS[0][1 : 1 + seed % 4]]
        graph = file.draw_in_graph(prompt, choices)
        host = file.draw(prompt, choices)
        assert list(host) == graph["tokens"].tolist()
        tokens = generator([prompt], choices).tokens[0]
        assert tokens == graph["tokens"].tolist()
        drafted += int(graph["accepted"].sum())
        if seed < 4:
            assert tokens == base([prompt], choices).tokens[0]
    assert drafted > 20


PARITY: list[Any] = [
    pytest.param(rescored, {}, id="n-gram"),
    pytest.param(neural, {}, id="neural"),
    pytest.param(best_paths, {"paths": 3}, id="paths"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make_drafter", "sizes"), PARITY)
def test_float32_file_gives_the_tokens_of_python_for_100_prompts(tmp_path, make_drafter, sizes):
    limits: dict[str, Any] = {"max_prompt": MAX_PROMPT, "max_new_tokens": MAX_NEW, "draft_length": HEADS - 1, **sizes}
    export(
        MODEL, weights(), VOCABULARY, tmp_path / "m.tflite", decodings=("blockwise",), **limits, drafter=make_drafter()
    )
    file = device.load(tmp_path / "m.tflite")
    generator = Generator(MODEL, weights(), "blockwise", make_drafter(), **limits)
    draws = np.random.default_rng(0)
    for temperature in (0.0, 0.9):
        for seed in range(100):
            prompt = [BOS, *draws.integers(3, VOCABULARY.size, draws.integers(1, MAX_PROMPT)).tolist()]
            choices = Choices(max_new_tokens=MAX_NEW, temperature=temperature, seed=seed)
            assert file.draw_in_graph(prompt, choices)["tokens"].tolist() == generator([prompt], choices).tokens[0]

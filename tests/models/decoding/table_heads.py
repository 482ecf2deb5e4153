"""Language models with prediction heads that are tables of integers, so that equal logits are equal to the bit."""

from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding.block_decoder import BlockDecoder, Request
from models.decoding.choices import Processing
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.heads import HeadedLanguageModel
from tests.models.decoding.table_model import TableModel


class TableBase(TableModel):
    """Is a table model whose hidden state says which two tokens were read last: a one-hot vector of V² numbers."""

    def __init__(self, size):
        super().__init__(np.zeros([size, size, size]))

    def shapes(self):
        return {"embedding": (self.vocabulary_size, self.vocabulary_size**2)}

    def fit(self, context):
        return self

    def extend(self, weights, tokens, state, tree=None, level=None):
        logits, _, trail = self.extend_with_hidden(weights, tokens, state, tree, level)
        return logits, trail

    def extend_with_hidden(self, weights, tokens, state, tree=None, level=None):
        before, trail = self.tokens_before(tokens, state, tree, level)
        hidden = tf.one_hot(before * self.vocabulary_size + tokens, self.vocabulary_size**2)
        return tf.matmul(hidden, weights["embedding"], transpose_b=True), hidden, trail

    def logits(self, weights, hidden):
        return tf.matmul(hidden, weights["embedding"], transpose_b=True)


class TableHeads:
    """Holds a model with prediction heads, its weights, and the same as NumPy tables.

    The logits of a head after two tokens are the base's after two others, which `places` names.

    Args:
      table: float32 `[V, V, V]`, the base's logits after two tokens, integers.
      places: int `[h - 1, V²]`, for each head from 2 and each pair of tokens a · V + b, the pair.
    """

    def __init__(self, table, places):
        self.size, self.places = len(table), np.asarray(places)
        self.rows = np.reshape(np.asarray(table, np.float32), [self.size**2, self.size])
        self.model: Any = HeadedLanguageModel(TableBase(self.size), len(self.places) + 1)  # type: ignore[arg-type]
        identity, self.weights = np.eye(self.size**2, dtype=np.float32), {"embedding": self.rows.T.copy()}
        for head, own in enumerate(self.places, start=2):
            # silu(32) is 32 in float32, so that the sum with the hidden state is the vector of the other pair.
            self.weights[f"head_{head}.inner"] = 32 * identity
            self.weights[f"head_{head}.outer"] = (identity[own] - identity) / 32

    def greedy(self, text):
        """Returns the base's likeliest token after a text, the lowest id of several."""
        return int(np.argmax(self.rows[self.pair(text)]))

    def heads(self, text):
        """Returns the logits of the heads from 2 after a text, `[h - 1, V]`; zeros if it is empty."""
        if not text:
            return np.zeros([len(self.places), self.size], np.float32)
        return self.rows[self.places[:, self.pair(text)]]

    def pair(self, text):
        """Returns the number of a text's last two tokens; before its first one is token 0."""
        return ([0, *text][-2]) * self.size + text[-1]


def draw_heads(seed, size, heads, is_right=0.7, values=3):
    """Draws a model whose heads often predict the greedy text; `values` = 0 has no equal logits, others many."""
    generator = np.random.default_rng(seed)
    table = (
        generator.integers(0, values, [size] * 3)
        if values
        else generator.permuted(np.tile(np.arange(size), [size, size, 1]), axis=2)
    )
    best, pairs = np.argmax(table, axis=2).ravel(), np.arange(size**2)
    places = []
    ahead = pairs % size * size + best[pairs]  # the pair that ends with the greedy token
    for _ in range(heads - 1):
        other = generator.integers(0, size**2, size**2)
        places.append(np.where(generator.random(size**2) < is_right, ahead, other))
        ahead = ahead % size * size + best[ahead]
    return TableHeads(table, places)


def start(own: TableHeads, drafter, prompts, paths=1, temperature=0.0):
    """Returns the decoder, its state after the prompts, and the request."""
    options = DraftOptions(len(own.places), paths=paths)
    decoder: Any = build_decoder("blockwise", own.model, own.weights, drafter, options)
    longest = max(map(len, prompts))
    padded = tf.constant([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    lengths = tf.constant([len(prompt) - 1 for prompt in prompts])
    state = decoder.read(padded[:, :-1] if longest > 1 else padded, lengths, decoder.initial_state(len(prompts)))
    state = decoder.begin(tf.constant([prompt[-1] for prompt in prompts]), state)
    request = Request(tf.constant([1, 2]), tf.range(len(prompts)), Processing(temperature=temperature))
    return decoder, state, request


def next_words(decoder: BlockDecoder, state, request):
    """Returns the random words of the next block."""
    return tf.nest.map_structure(lambda part: part[:, 0], decoder.words(request, state.position, 1))


def decode(own: TableHeads, drafter, prompts, blocks, paths=1, temperature=0.0):
    """Returns the tokens of each block of each prompt, `[prompts][blocks]`."""
    decoder, state, request = start(own, drafter, prompts, paths, temperature)
    found: list[list[list[int]]] = [[] for _ in prompts]
    for _ in range(blocks):
        words = next_words(decoder, state, request)
        block, state = decoder.block(state, request, words, tf.fill([len(prompts)], True))
        for row, tokens, count in zip(found, block.tokens.numpy(), block.count.numpy(), strict=True):
            row.append(tokens[:count].tolist())
    return found

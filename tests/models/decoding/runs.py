"""Runs the decoding loop on table models, from NumPy inputs; each kind of run is traced once."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding import numpy_ops
from models.decoding.choices import Costs, Processing
from models.decoding.drafters import Drafter, ModelDrafter
from models.decoding.loop import Ends, begin, generate
from models.decoding.methods import build_method
from models.decoding.speculation import Request, Speculation
from tests.models.decoding.table_model import TableModel, draw_table

SIZE, LONGEST, TAIL = 12, 24, 2
TARGET: Any = TableModel(draw_table(0, SIZE))
NEAR: Any = TableModel(draw_table(0, SIZE) + draw_table(1, SIZE, 0.7))  # a drafter that is often right
FAR: Any = TableModel(draw_table(2, SIZE))
NO_SEQUENCES = np.zeros([0, TAIL + 1], np.int32)


class Hesitant(Drafter):
    """Drafts as a table model does, but proposes nothing after some tokens."""

    may_pass = True

    def __init__(self, model, silent):
        self.model, self.silent = model, silent

    def initial_state(self, batch):
        return self.model.initial_state(batch)

    def step(self, tokens, state):
        logits, trail = self.model.extend({}, tokens[:, tf.newaxis], state)
        is_silent = tf.reduce_any(tf.equal(tokens[:, tf.newaxis], self.silent), axis=1)
        return tf.where(is_silent[:, tf.newaxis], -np.inf, logits[:, 0]), tokens

    def logits(self, text):
        return None if text[-1] in self.silent else self.model.logits(text)


DRAFTERS: dict[str, Any] = {
    "near": ModelDrafter(NEAR, {}),
    "far": ModelDrafter(FAR, {}),
    "target": ModelDrafter(TARGET, {}),
    "hesitant": Hesitant(NEAR, [2, 5, 7, 9]),
}


@functools.cache
def speculation(method, draft_length, drafter="near", automatic=False):
    return Speculation(
        TARGET, {}, build_method(method), DRAFTERS[drafter] if draft_length else None, draft_length, automatic
    )


def request(seed, requests, processing=None, bias=(), costs=None):
    options = (processing or Processing())._asdict().items()
    processing = Processing(**{n: tf.constant(v, tf.int32 if n == "top_k" else tf.float32) for n, v in options})
    costs = () if costs is None else Costs(*(tf.constant(cost, tf.float32) for cost in costs))
    return Request(tf.constant(numpy_ops.seed_words(seed)), tf.constant(requests, tf.int32), processing, bias, costs)


def ends(max_new=LONGEST, stop=-1, sequences=NO_SEQUENCES):
    return Ends(tf.constant(max_new), tf.constant(stop), tf.constant(sequences, tf.int32))


def padded(prompts):
    """Returns all tokens of the prompts but the last, how many these are, and the last."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros([len(prompts), longest], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt) - 1] = prompt[:-1]
    last = np.array([prompt[-1] for prompt in prompts], np.int32)
    return tf.constant(tokens), tf.constant([len(prompt) - 1 for prompt in prompts]), tf.constant(last)


@functools.cache
def graphs(method, draft_length, drafter="near", automatic=False, compiled=False):
    """Returns the graphs that begin with prompts and that continue, traced at their first call."""
    own = speculation(method, draft_length, drafter, automatic)

    def proceed(progress, asked, where):
        return generate(own, progress, asked, where, own.words(asked, progress.state.position, LONGEST))

    def start(tokens, lengths, last, asked, where):
        state = own.begin(last, own.read(tokens, lengths, own.initial_state(tokens.shape[0])))
        return proceed(begin(own, state, TAIL), asked, where)

    options = {"autograph": False, "jit_compile": compiled}
    return tf.function(start, **options), tf.function(proceed, **options)


def run(prompts, asked, where, *kind, **options):
    """Decodes prompts with the loop; `kind` and `options` are arguments of `graphs`."""
    return graphs(*kind, **options)[0](*padded(prompts), asked, where)


def resume(generated, asked, where, *kind, **options):
    return graphs(*kind, **options)[1](generated.progress, asked, where)


def texts(generated):
    """Returns the tokens of each row."""
    return [row[:n].tolist() for row, n in zip(generated.tokens.numpy(), generated.lengths.numpy(), strict=True)]

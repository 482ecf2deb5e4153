"""Runs the decoding loop on table models, with few graphs: what tests vary is an input or a variable.

A batch has two rows.
"""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding import numpy_ops
from models.decoding.block_decoder import Request, is_plain
from models.decoding.choices import Costs, Processing
from models.decoding.draft_length import choose
from models.decoding.drafters import Drafter, ModelDrafter
from models.decoding.loop import Ends, begin, generate
from models.decoding.methods import build_method
from models.decoding.speculation import Speculation
from tests.models.decoding.table_model import TableModel, draw_table

SIZE, LONGEST, TAIL = 12, 24, 2
TARGET: Any = TableModel(draw_table(0, SIZE))
TABLES = {
    "near": draw_table(0, SIZE) + draw_table(1, SIZE, 0.7),  # a drafter that is often right
    "far": draw_table(2, SIZE),
    "target": TARGET.table,
}
SILENT = np.isin(np.arange(SIZE), [2, 5, 7, 9])  # the tokens after which the hesitant drafter proposes nothing
NO_SEQUENCES = np.full([2, TAIL + 1], -2)
FREE = (1.0, 1e-9, 0.0)  # costs with which automatic draft lengths are the longest

# What the graphs read; a test may put other values in.
_TARGET_TABLE = tf.Variable(TARGET.table)
_DRAFTER_TABLE = tf.Variable(TARGET.table)
_IS_SILENT = tf.Variable(np.zeros(SIZE, bool))


class Hesitant(Drafter):
    """Drafts as a table model does, but proposes nothing after some tokens."""

    may_pass = True

    def __init__(self, model, table, is_silent):
        self.model, self.table, self.is_silent = model, table, is_silent

    def initial_state(self, batch):
        return self.model.initial_state(batch)

    def step(self, tokens, state):
        # XLA cannot gather from a variable itself.
        table, is_silent = tf.convert_to_tensor(self.table), tf.convert_to_tensor(self.is_silent)
        logits, _ = self.model.extend({"table": table}, tokens[:, tf.newaxis], state)
        return tf.where(tf.gather(is_silent, tokens)[:, tf.newaxis], -np.inf, logits[:, 0]), tokens


def drafter_logits(name):
    """Returns a function from a text to the logits of a drafter, or to None where it proposes nothing."""
    model = TableModel(TABLES["near" if name == "hesitant" else name])
    if name != "hesitant":
        return model.logits
    return lambda text: None if SILENT[text[-1]] else model.logits(text)


@functools.cache
def speculation(method, draft_length, flexible=False):
    """Returns target, drafter and method.

    If flexible, the drafter may propose nothing, and draft lengths are automatic where the method allows it.
    """
    drafter: Any = ModelDrafter(TARGET, {"table": _DRAFTER_TABLE})
    if flexible:
        drafter = Hesitant(TARGET, _DRAFTER_TABLE, _IS_SILENT)
    automatic = flexible and method != "greedy-block"
    own = build_method(method)
    return Speculation(
        TARGET, {"table": _TARGET_TABLE}, own, drafter if draft_length else None, draft_length, automatic
    )


def request(seed, requests, processing=None, bias=None, costs=FREE, plain=None):
    """Returns a request; `plain` = False takes the general path even if the request is plain."""
    options = (processing or Processing())._asdict().items()
    options = Processing(**{n: tf.constant(v, tf.int32 if n == "top_k" else tf.float32) for n, v in options})
    bias = tf.constant(np.zeros([2, SIZE]) if bias is None else bias, tf.float32)
    return Request(
        tf.constant(numpy_ops.seed_words(seed)),
        tf.constant(requests, tf.int32),
        options,
        bias,
        Costs(*(tf.constant(cost, tf.float32) for cost in costs)),
        is_plain(options, bias) if plain is None else tf.constant(plain),
    )


def ends(max_new=LONGEST, stop=-1, sequences=NO_SEQUENCES):
    return Ends(tf.constant(max_new), tf.constant(stop), tf.constant(sequences, tf.int32))


def start(prompts, own):
    """Reads the prompts, and returns the progress before the first token."""
    return _start(tuple(map(tuple, prompts)), own)


@functools.cache  # no state depends on a table
def _start(prompts, own):
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros([len(prompts), longest], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt) - 1] = prompt[:-1]
    lengths = tf.constant([len(prompt) - 1 for prompt in prompts])
    state = own.read(tf.constant(tokens), lengths, own.initial_state(len(prompts)))
    return begin(own, own.begin(tf.constant([prompt[-1] for prompt in prompts]), state), TAIL)


@functools.cache
def graph(method, draft_length, flexible=False, compiled=False):
    """Returns the loop as a graph, traced at its first call."""
    own = speculation(method, draft_length, flexible)

    def proceed(progress, asked, where):
        return generate(own, progress, asked, where, own.words(asked, progress.state.position, LONGEST))

    return tf.function(proceed, autograph=False, jit_compile=compiled)


def reset_tables(drafter="near", table=None):
    """Sets what the graphs read; arguments as for `run`."""
    _TARGET_TABLE.assign(TARGET.table if table is None else table)
    _DRAFTER_TABLE.assign(TABLES["near" if drafter == "hesitant" else drafter])
    _IS_SILENT.assign(SILENT & (drafter == "hesitant"))


def run(prompts, asked, where, method, draft_length, drafter="near", table=None, **kind):
    """Decodes prompts with the loop; `table` replaces the target's, and `kind` goes to `graph`."""
    reset_tables(drafter, table)
    own = speculation(method, draft_length, kind.get("flexible", False))
    return graph(method, draft_length, **kind)(start(prompts, own), asked, where)


def resume(generated, asked, where, method, draft_length, **kind):
    """Goes on with the models of the run before."""
    return graph(method, draft_length, **kind)(generated.progress, asked, where)


def texts(generated):
    """Returns the tokens of each row."""
    return rows(generated.tokens, generated.lengths)


def rows(tokens, lengths):
    return [row[:n].tolist() for row, n in zip(tokens.numpy(), lengths.numpy(), strict=True)]


class Chooser:
    """Chooses draft lengths as a plain program, from what became of the blocks before."""

    def __init__(self, costs, longest):
        self.costs, self.longest = costs, longest

    def __call__(self, blocks):
        evidence = np.zeros(2, np.float32)
        for drafted, accepted in blocks:
            if not drafted:
                continue
            evidence = evidence * np.float32(63 / 64) + np.array([accepted, accepted < drafted], np.float32)
        return int(choose(tf.constant(evidence[np.newaxis]), Costs(*self.costs), self.longest)[0])

"""Draws texts by the decoding "invariant" in several ways, and compares them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SEED = 0
_LONGEST = 8
_PROBED = 24  # texts over which logits of calls of different shapes are compared


class Family(NamedTuple):
    """Holds a model to compare.

    Attributes:
      name: name of the row.
      model: the language model.
      weights: its weights by name.
      start: the token that texts begin after.
    """

    name: str
    model: Any
    weights: dict[str, NDArray[Any]]
    start: int


class Variant(NamedTuple):
    """Says how texts are drawn.

    Attributes:
      draft_length: number of drafted tokens.
      drafter: "near" (the target with weights disturbed by 5 %), "far" (other weights), or "" for none.
      batch: rows per call.
    """

    draft_length: int
    drafter: str
    batch: int

    def __str__(self) -> str:
        return f"G = {self.draft_length}{self.drafter and f', {self.drafter} drafter'}, batch {self.batch}"


BASE = Variant(0, "", 1)
VARIANTS = (
    Variant(0, "", 8),
    *(Variant(length, "near", batch) for length in (1, 4, 8) for batch in (1, 8)),
    Variant(4, "far", 1),
)


def compare(family: Family, texts: int, tokens: int) -> dict[str, Any]:
    """Draws texts in all ways.

    Args:
      family: the model.
      texts: number of texts, each of its own request.
      tokens: number of tokens of each.

    Returns:
      "equal": for each variant how many texts equal those of `BASE`; "changed": for each text that does not, the
      variant, the request, the first other position and the margin there, which is the difference of the two largest
      sums of logit and noise; "smallest_margin" over all positions of the probed texts; "logit_difference": the largest
      one between a call for one token, a call for 9 tokens, and a call for 8 rows, over the same texts.
    """
    expected = draw(family, BASE, texts, tokens)
    probe = Probe(family, tokens)
    equal, changed = {}, []
    for variant in VARIANTS:
        found = draw(family, variant, texts, tokens)
        differs = found != expected
        equal[str(variant)] = int(np.sum(~differs.any(axis=1)))
        for request in np.flatnonzero(differs.any(axis=1)).tolist():
            place = int(differs[request].argmax())
            margin = float(probe.margins(expected[request], request)[place])
            changed.append({"variant": str(variant), "request": request, "position": place, "margin": margin})
    probed = range(min(_PROBED, texts))
    margins = [probe.margins(expected[request], request).min() for request in probed]
    difference = max(probe.difference(expected[request]) for request in probed)
    return {
        "weights": int(sum(value.size for value in family.weights.values())),
        "equal": equal,
        "changed": changed,
        "smallest_margin": float(min(margins)),
        "logit_difference": difference,
    }


def draw(family: Family, variant: Variant, texts: int, tokens: int) -> NDArray[np.int32]:
    """Returns the texts of requests 0, 1, …, int32 `[texts, tokens]`."""
    import tensorflow as tf

    from models.decoding import numpy_ops
    from models.decoding.block_decoder import Request
    from models.decoding.choices import Processing
    from models.decoding.drafters import ModelDrafter
    from models.decoding.loop import Ends, begin, generate
    from models.decoding.methods import build_method
    from models.decoding.speculation import Speculation

    # A row of a batch that has ended goes on drafting after its last block until the others have ended.
    model = family.model.fit(tokens + 2 * (variant.draft_length + 1))
    drafter = ModelDrafter(model, _constants(_draft_weights(family, variant.drafter))) if variant.drafter else None
    own = Speculation(
        model,
        _constants(family.weights),
        build_method("invariant"),
        drafter,
        variant.draft_length,
        penalties=False,
        log_probs=False,
    )
    seed = tf.constant(numpy_ops.seed_words(_SEED))
    ends = Ends(tf.constant(tokens), tf.constant(-1), tf.zeros([0, 1], tf.int32))

    @tf.function(autograph=False)
    def run(requests: Any) -> Any:
        request = Request(seed, requests, Processing())
        state = own.begin(tf.fill([variant.batch], family.start), own.initial_state(variant.batch))
        return generate(own, begin(own, state), request, ends, own.words(request, state.position, tokens)).tokens

    rows = -(-texts // variant.batch) * variant.batch
    parts = np.arange(rows, dtype=np.int32).reshape(-1, variant.batch)
    return np.concatenate([run(tf.constant(part)).numpy() for part in parts])[:texts]


class Probe:
    """Reads texts token by token, and in calls of other shapes."""

    def __init__(self, family: Family, tokens: int) -> None:
        import tensorflow as tf

        self._start, self._size = family.start, family.model.vocabulary_size
        self._width = min(_LONGEST + 1, tokens)
        model, weights = family.model.fit(tokens + self._width), _constants(family.weights)

        @tf.function(autograph=False)
        def extend(read: Any, state: Any) -> Any:
            logits, trail = model.extend(weights, read, state)
            return logits, model.rewind(trail, tf.fill([read.shape[0]], read.shape[1]))

        self._extend, self._initial = extend, model.initial_state

    def _logits(self, text: NDArray[np.int32], width: int, rows: int) -> NDArray[np.float32]:
        """Returns the logits before each token of a text, of calls for `width` tokens and `rows` equal rows."""
        import tensorflow as tf

        read = np.tile(np.array([self._start, *text[:-1]], np.int32), (rows, 1))
        state, outputs = self._initial(rows), []
        for place in range(0, len(text) - len(text) % width, width):
            logits, state = self._extend(tf.constant(read[:, place : place + width]), state)
            outputs.append(logits.numpy()[0])
        return np.concatenate(outputs)

    def margins(self, text: NDArray[np.int32], request: int) -> NDArray[np.float32]:
        """Returns the difference of the two largest sums of logit and noise at each position of a text."""
        from models.decoding import numpy_ops, numpy_processing, numpy_race
        from models.decoding.choices import Processing

        processed = numpy_processing.process(self._logits(text, 1, 1), Processing())
        noise = numpy_race.gumbels(numpy_ops.seed_words(_SEED), request, 1 + np.arange(len(text)), self._size)
        second, first = np.partition(processed + noise, -2, axis=-1)[:, -2:].T
        return first - second

    def difference(self, text: NDArray[np.int32]) -> float:
        """Returns the largest difference of a logit between a call for one token, for 9 tokens, and for 8 rows."""
        base = self._logits(text, 1, 1)
        others = (self._logits(text, self._width, 1), self._logits(text, 1, 8))
        return max(float(np.abs(other - base[: len(other)]).max()) for other in others)


def _draft_weights(family: Family, drafter: str) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(1)
    share = {"near": 0.05, "far": 1.0}[drafter]
    return {
        name: (value + share * value.std() * generator.standard_normal(value.shape)).astype(np.float32)
        for name, value in family.weights.items()
    }


def _constants(weights: dict[str, NDArray[Any]]) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.constant(value) for name, value in weights.items()}

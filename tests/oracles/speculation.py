"""Decodes one row in blocks, in plain Python and float64, from the same random words as `models.decoding.loop`."""

import math
from dataclasses import dataclass, field

import numpy as np

from models.decoding import numpy_ops
from models.decoding.numpy_ops import Stream
from models.decoding.numpy_processing import History, process
from models.decoding.numpy_race import gumbels


@dataclass
class Found:
    """Holds the tokens of a row with both log-probabilities, and what became of each block.

    Attributes:
      tokens: the tokens.
      log_probs: under the processed target.
      unprocessed: under the target's softmax.
      blocks: (drafted, accepted) of each block.
      least: smallest distance of a random number from the boundary between two decisions.
    """

    tokens: list = field(default_factory=list)
    log_probs: list = field(default_factory=list)
    unprocessed: list = field(default_factory=list)
    blocks: list = field(default_factory=list)
    least: float = 1.0


class Row:
    """Decodes a row; `target` and `drafter` map a list of tokens to logits `[V]`, or to None (no proposal)."""

    def __init__(self, target, drafter, prompt, method, draft_length, seed, request, processing, bias=None):
        self.target, self.drafter, self.prompt = target, drafter, list(prompt)
        self.method, self.draft_length, self.processing, self.bias = method, draft_length, processing, bias
        self.seed, self.request = numpy_ops.seed_words(seed), request
        self.found = Found()
        self.starts: list = []  # numbers of tokens before each block, for greedy block

    def run(self, max_new, stop=-1, sequences=(), draft_lengths=None):
        """Decodes until max_new tokens, the stop token or a stop sequence."""
        while True:
            wanted = self.draft_length if draft_lengths is None else draft_lengths(self.found.blocks)
            for token, processed, unprocessed in self.block(wanted):
                self.found.tokens.append(token)
                self.found.log_probs.append(processed)
                self.found.unprocessed.append(unprocessed)
                text = self.found.tokens
                if token == stop or any(text[-len(s) :] == list(s) for s in sequences) or len(text) == max_new:
                    return self.found

    def words(self, stream, index, position):
        first, second = numpy_ops.random_words(self.seed, stream, self.request, position, index)
        return int(first), int(second)

    def processed(self, logits, text):
        size = len(logits)
        new = text[len(self.prompt) :]
        history = History(np.isin(np.arange(size), self.prompt), np.bincount(new, minlength=size).astype(np.int32))
        return process(np.asarray(logits, np.float32), self.processing, history, self.bias)

    def law(self, logits, text):
        weights = numpy_ops.weights(self.processed(logits, text)).astype(object)
        return np.array([float(w / weights.sum()) for w in weights])

    def invert(self, law, words):
        """Draws a token with a number of 62 bits."""
        high, low = ((word & 0xFFFFFFFF) >> 1 for word in words)
        return self.divide(np.cumsum(law), (high * 2**31 + low) / 2**62)

    def divide(self, bounds, number):
        bounds = bounds / bounds[-1]
        self.found.least = min(self.found.least, float(np.min(np.abs(bounds[:-1] - number), initial=1.0)))
        return int(np.sum(bounds <= number))

    def block(self, wanted):
        """Returns the tokens of the next block with their log-probabilities."""
        text = self.prompt + self.found.tokens
        start = len(text)
        noise = None
        if self.method == "invariant":
            size = len(self.target(text))
            positions = np.arange(start, start + self.draft_length + 1)
            noise = gumbels(self.seed, self.request, positions, size)
        draft: list = []
        laws: list = []
        for place in range(wanted):
            logits = self.drafter(text + draft)
            if logits is None:
                break
            if noise is None:
                laws.append(self.law(logits, text + draft))
                words = numpy_ops.random_words(self.seed, Stream.DRAFT, self.request, start, place)
                draft.append(self.invert(laws[-1], [int(word) for word in words]))
            else:
                draft.append(int(np.argmax(self.processed(logits, text + draft) + noise[place])))
        prefixes = [text + draft[:count] for count in range(len(draft) + 1)]
        logits = [np.asarray(self.target(prefix), np.float32) for prefix in prefixes]
        targets = [self.law(logits[i], prefix) for i, prefix in enumerate(prefixes)]
        if self.method == "autoregressive":
            first, second = numpy_ops.random_words(self.seed, Stream.SAMPLE, self.request, start)
            accepted, token = 0, self.invert(targets[0], (int(first), int(second)))
        elif noise is not None:
            own = [
                int(np.argmax(self.processed(row, p) + noise[i]))
                for i, (row, p) in enumerate(zip(logits, prefixes, strict=True))
            ]
            accepted = next((i for i, drafted in enumerate(draft) if own[i] != drafted), len(draft))
            token = own[accepted]
        else:
            accepted, token = self.decide(targets, laws, draft, start)
        self.found.blocks.append((len(draft), accepted))
        tokens = [*draft[:accepted], token]
        return [
            (t, math.log(targets[i][t]), float(logits[i][t] - np.logaddexp.reduce(logits[i].astype(np.float64))))
            for i, t in enumerate(tokens)
        ]

    def decide(self, targets, laws, draft, start):
        """Draws tau from its distribution, by one number, and then the token after it."""
        count = len(draft)
        if self.method == "greedy-block":
            text = self.prompt + self.found.tokens
            targets = [self.changed(text + draft[:i], len(self.starts)) for i in range(count + 1)]
            self.starts.append(start)
        ratios = [targets[i][x] / laws[i][x] for i, x in enumerate(draft)]
        if self.method == "speculative":
            stops, passed = [], 1.0
            for ratio in ratios:
                stops.append(passed * (1 - min(1, ratio)))
                passed *= min(1, ratio)
            stops.append(passed)
            scales = [1.0] * (count + 1)
        else:
            is_greedy = self.method == "greedy-block"
            scales = [1.0]
            for ratio in ratios:
                scales.append(scales[-1] * ratio if is_greedy else min(1.0, scales[-1] * ratio))
            chances = [1.0]
            for i in range(1, count):
                mass = np.maximum(scales[i] * targets[i] - laws[i], 0).sum()
                denominator = (
                    np.maximum(laws[i] - scales[i] * targets[i], 0).sum() if is_greedy else mass + 1 - scales[i]
                )
                chances.append(min(1.0, mass / denominator) if denominator > 0 else 1.0)
            if count:
                chances.append(min(1.0, scales[count]))
            stops, passed = [0.0] * (count + 1), 1.0
            for i in range(count, -1, -1):
                stops[i] = passed * chances[i]
                passed *= 1 - chances[i]
        accept, _ = numpy_ops.random_words(self.seed, Stream.ACCEPT, self.request, start, 0)
        tau = self.divide(np.cumsum(stops), float(numpy_ops.uniforms(np.array([int(accept)], np.int32))[0]))
        stream = Stream.BONUS if tau == count else Stream.RESIDUAL
        law = targets[tau]
        if tau < count:
            residual = np.maximum(scales[tau] * targets[tau] - laws[tau], 0)
            law = residual / residual.sum() if residual.sum() > 0 else law
        words = numpy_ops.random_words(self.seed, stream, self.request, start, 0)
        return tau, self.invert(law, [int(word) for word in words])

    def changed(self, text, blocks):
        """Returns the target's distribution after a text, with the changes that the first blocks have left."""
        if not blocks:
            return self.law(self.target(text), text)
        law, start = self.changed(text, blocks - 1), self.starts[blocks - 1]
        if len(text) >= start + self.draft_length:
            return law
        joint, drafted = 1.0, 1.0
        for length in range(start, len(text)):
            joint *= self.changed(text[:length], blocks - 1)[text[length]]
            drafted *= self.drafter_law(text[:length])[text[length]]
        left = np.maximum(joint * law - drafted * self.drafter_law(text), 0)
        return left / left.sum() if left.any() else law

    def drafter_law(self, text):
        """Returns the drafter's distribution after a text; zeros where it proposes nothing."""
        logits = self.drafter(text)
        return np.zeros(len(self.target(text))) if logits is None else self.law(logits, text)

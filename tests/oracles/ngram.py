"""Computes n-gram models with dictionaries, one token at a time."""

import math
from collections import Counter


def _discount(counts):
    once = sum(count == 1 for count in counts)
    twice = sum(count == 2 for count in counts)
    return once / (once + 2 * twice) if once else 0.5


class Unigram:
    def __init__(self, sentences, size):
        self.counts = Counter(token for sentence in sentences for token in sentence[1:] if token != 0)
        self.size = size

    def probability(self, token):
        return (self.counts[token] + 1) / (sum(self.counts.values()) + self.size)


class KneserNeyBigram:
    def __init__(self, sentences, size):
        self.size = size
        self.pairs = Counter(
            (context, token)
            for sentence in sentences
            for context, token in zip(sentence, sentence[1:], strict=False)
            if token != 0
        )

    def lower(self, token):
        continuations = Counter(after for _, after in self.pairs)
        discount = _discount(continuations.values())
        kinds = len(self.pairs)
        uniform = discount * len(continuations) / kinds / self.size
        return max(continuations[token] - discount, 0) / kinds + uniform

    def probability(self, context, token):
        after = {w: n for (c, w), n in self.pairs.items() if c == context}
        total = sum(after.values())
        if total == 0:
            return self.lower(token)
        discount = _discount(self.pairs.values())
        first = max(after.get(token, 0) - discount, 0) / total
        return first + discount * len(after) / total * self.lower(token)

    def loss(self, sentence):
        return [
            -math.log(self.probability(context, token)) for context, token in zip(sentence, sentence[1:], strict=False)
        ]

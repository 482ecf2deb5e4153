"""Computes a Katz back-off model from dictionaries of tuples, each probability by its definition."""

from collections import Counter


def _discount(counts):
    once = sum(count == 1 for count in counts)
    twice = sum(count == 2 for count in counts)
    return once / (once + 2 * twice) if once and twice else 0.5


class Katz:
    def __init__(self, sequences, size, order, min_counts=(), max_entries=10**9, max_successors=10**9):
        self.size, self.order = size, order
        self.counts: dict[int, Counter] = {length: Counter() for length in range(1, order + 1)}
        for sequence in sequences:
            for end in range(1, len(sequence)):
                for length in range(1, order + 1):
                    gram = tuple(sequence[end - length + 1 : end + 1]) if end - length + 1 >= 0 else ()
                    if gram and 0 not in gram:
                        self.counts[length][gram] += 1
        self.stored: set[tuple] = set()
        for length in range(2, order + 1):
            least = min_counts[length - 2] if length - 2 < len(min_counts) else 1
            candidates = {
                g: n for g, n in self.counts[length].items() if n >= least and (length == 2 or g[:-1] in self.stored)
            }
            for context in {gram[:-1] for gram in candidates}:
                after = sorted((-n, g) for g, n in candidates.items() if g[:-1] == context)
                self.stored |= {gram for _, gram in after[:max_successors]}
        ranked = sorted(self.stored, key=lambda gram: (-self.counts[len(gram)][gram], len(gram), gram))
        self.stored = set(ranked[:max_entries])

    def probability(self, context, token):
        context = tuple(context[max(0, len(context) - self.order + 1) :])
        counts = self.counts[len(context) + 1]
        discount = _discount(counts.values())
        if not context:
            total = sum(counts.values())
            return max(counts[token,] - discount, 0) / total + discount * len(counts) / total / self.size
        successors = [gram[-1] for gram in self.stored if gram[:-1] == context]
        if not successors:
            return self.probability(context[1:], token)
        total = sum(n for gram, n in counts.items() if gram[:-1] == context)
        if token in successors:
            return (counts[*context, token] - discount) / total
        left = 1 - sum((counts[*context, w] - discount) / total for w in successors)
        others = 1 - sum(self.probability(context[1:], w) for w in successors)
        return left / others * self.probability(context[1:], token)

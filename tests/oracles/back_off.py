"""Computes an n-gram model with interpolated Kneser-Ney smoothing and left-out entries, from dictionaries of tuples."""

from collections import Counter


def _discount(counts):
    once = sum(count == 1 for count in counts)
    twice = sum(count == 2 for count in counts)
    return once / (once + 2 * twice) if once and twice else 0.5


class BackOff:
    def __init__(self, sequences, size, order, max_entries, max_successors):
        self.size, self.order = size, order
        self.counts: dict[int, Counter] = {length: Counter() for length in range(1, order + 1)}
        for sequence in sequences:
            for end in range(1, len(sequence)):
                for length in range(1, order + 1):
                    gram = tuple(sequence[end - length + 1 : end + 1]) if end - length + 1 >= 0 else ()
                    if gram and 0 not in gram:
                        self.counts[length][gram] += 1
        self.occurrences = {length: Counter(counts) for length, counts in self.counts.items()}
        self.stored: set[tuple] = set()
        for length in range(2, order + 1):
            candidates = {g: n for g, n in self.counts[length].items() if length == 2 or g[:-1] in self.stored}
            for context in {gram[:-1] for gram in candidates}:
                after = sorted((-n, g) for g, n in candidates.items() if g[:-1] == context)
                self.stored |= {gram for _, gram in after[:max_successors]}
        ranked = sorted(self.stored, key=lambda gram: (-self.counts[len(gram)][gram], len(gram), gram))
        self.stored = set(ranked[:max_entries])
        for length in range(1, order):
            before: dict[tuple, set] = {}
            for gram in self.occurrences[length + 1]:
                before.setdefault(gram[1:], set()).add(gram[0])
            self.counts[length] = Counter({g: len(before.get(g, ())) or n for g, n in self.occurrences[length].items()})

    def probability(self, context, token):
        context = tuple(context[max(0, len(context) - self.order + 1) :])
        if not context:
            counts = self.counts[1]
            total, discount = sum(counts.values()), _discount(counts.values())
            return max(counts[token,] - discount, 0) / total + discount * len(counts) / total / self.size
        counts, shorter = self.counts[len(context) + 1], self.probability(context[1:], token)
        discount, total = _discount(counts.values()), sum(n for g, n in counts.items() if g[:-1] == context)
        masses = {g[-1]: (counts[g] - discount) / total for g in self.stored if g[:-1] == context}
        return masses.get(token, 0) + (1 - sum(masses.values())) * shorter

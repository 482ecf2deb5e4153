"""Computes the prediction heads of a language model one position at a time, in NumPy float64."""

import math
from typing import Any

import numpy as np

from tests.oracles import cifg, transformer


def hidden(base, weights, tokens):
    """Returns the vectors that the output layer of the base reads after each token of one row: [T] -> [T, E]."""
    if hasattr(base, "cell"):
        return cifg.states(base.cell, weights, weights["embedding"][tokens], layer_norm=base.layer_norm)[0]
    return transformer.hidden(base, weights, tokens)


def logits(weights, vector, head):
    """Returns the logits [V] of a head at a hidden state [E]."""
    if head > 1:
        inner = np.array([v / (1 + math.exp(-v)) for v in vector @ weights[f"head_{head}.inner"]])
        vector = vector + inner @ weights[f"head_{head}.outer"]
    return weights.get("output", weights["embedding"]) @ vector + weights.get("output_bias", 0.0)


def predictions(base, weights, rows, heads):
    """Returns for each head its (log-probabilities [V], target) at all positions of `rows` that have a target."""
    found: list[list[Any]] = [[] for _ in range(heads)]
    for row in rows:
        for position, vector in enumerate(hidden(base, weights, row[:-1])):
            for head in range(1, heads + 1):
                if position + head < len(row) and row[position + head] != 0:
                    z = logits(weights, vector, head)
                    log_sum = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
                    found[head - 1].append((z - log_sum, row[position + head]))
    return found


def loss_sum(base, weights, rows, heads):
    """Returns the sum of all heads' losses in nats."""
    return -sum(log_probs[target] for each in predictions(base, weights, rows, heads) for log_probs, target in each)

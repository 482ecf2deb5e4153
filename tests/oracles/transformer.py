"""Computes a decoder-only transformer one token and one head at a time, in NumPy float64."""

import math

import numpy as np


def normalize(model, x, scale):
    """Normalises one vector [E]."""
    if model.normalization == "layer":
        x = x - sum(x) / len(x)
    square = sum(v * v for v in x) / len(x) + model.norm_epsilon
    x = np.zeros_like(x) if square == 0 else x / math.sqrt(square)
    return x if scale is None else x * scale


def rotate(model, x, position):
    """Turns one head [D] by the angles of its position: entry i with entry i + D/2."""
    half = len(x) // 2
    turned = np.array(x)
    for i in range(half):
        angle = position * model.rotary_base ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        turned[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def shares(model, scores):
    """Returns the weight of each visible key, from the products of query and key."""
    if model.attention == "softmax":
        scores = [score / math.sqrt(model.embedding // model.heads) for score in scores]
        powers = [math.exp(score - max(scores)) for score in scores]
    else:
        powers = [max(score, 0.0) for score in scores]
    total = sum(powers)
    return [power / total if total else 0.0 for power in powers]


def attention(model, weights, block, inputs):
    """Computes attention over one row of normalised vectors, a list of [E], each seeing itself and those before it."""
    size, groups = model.embedding // model.heads, model.key_value_heads or model.heads
    heads = []
    for position, x in enumerate(inputs):
        projected = x @ weights[f"{block}.query_key_value"]
        if model.attention_bias:
            projected = projected + weights[f"{block}.query_key_value_bias"]
        parts = [projected[i * size : (i + 1) * size] for i in range(model.heads + 2 * groups)]
        if model.positions == "rotary":
            parts = [rotate(model, p, position) if i < model.heads + groups else p for i, p in enumerate(parts)]
        heads.append((parts[: model.heads], parts[model.heads : -groups], parts[-groups:]))
    outputs = []
    for position in range(len(inputs)):
        merged = []
        for head, query in enumerate(heads[position][0]):
            group = head // (model.heads // groups)
            visible = heads[: position + 1]
            parts = shares(model, [float(query @ keys[group]) for _, keys, _ in visible])
            merged.append(sum(part * values[group] for part, (_, _, values) in zip(parts, visible, strict=True)))
        outputs.append(np.concatenate(merged) @ weights[f"{block}.attention_output"])
    return outputs


def feed_forward(model, weights, block, x):
    inner = x @ weights[f"{block}.inner"]
    if model.activation == "relu":
        inner = np.array([max(v, 0.0) for v in inner])
    else:
        gate, value = inner[: model.feed_forward], inner[model.feed_forward :]
        inner = np.array([g / (1 + math.exp(-g)) * v for g, v in zip(gate, value, strict=True)])
    return inner @ weights[f"{block}.outer"]


def hidden(model, weights, tokens):
    """Returns the vectors that the output layer reads after each token of one row: tokens [T] -> [T, E]."""
    row = []
    for position, token in enumerate(tokens):
        x = weights["embedding"][token]
        if model.positions == "learned":
            x = x + weights["positions"][position]
        row.append(x @ weights["embedding_projection"] if model.degree_two_embedding else x)
    for index in range(model.blocks):
        block = f"block_{index:02d}"
        inputs = [normalize(model, x, weights.get(f"{block}.attention_norm")) for x in row]
        row = [x + y for x, y in zip(row, attention(model, weights, block, inputs), strict=True)]
        inputs = [normalize(model, x, weights.get(f"{block}.feed_forward_norm")) for x in row]
        row = [x + feed_forward(model, weights, block, y) for x, y in zip(row, inputs, strict=True)]
    return np.array([normalize(model, x, weights.get("final_norm")) for x in row])


def logits(model, weights, tokens):
    """Returns the logits after each token of one row: tokens [T] -> [T, V]."""
    return hidden(model, weights, tokens) @ weights["embedding" if model.tied else "output"].T


def token_losses(model, weights, tokens):
    """Returns the loss of each next token of one row in nats: tokens [T+1] -> [T]."""
    losses = []
    for z, target in zip(logits(model, weights, tokens[:-1]), tokens[1:], strict=True):
        largest = max(z)
        losses.append(math.log(sum(math.exp(v - largest) for v in z)) + largest - z[target])
    return np.array(losses)

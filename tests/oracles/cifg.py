"""Computes CIFG, SI-CIFG and the tied-embedding language model one number at a time, in NumPy float64."""

import math

import numpy as np

LAYER_NORM_EPSILON = 1e-6


def sigmoid(x):
    return np.array([1 / (1 + math.exp(-v)) for v in x])


def tanh(x):
    return np.array([math.tanh(v) for v in x])


def scale_invariant_sigmoid(x):
    largest = max(max(v, 0.0) for v in x)
    return np.array([0.0 if largest == 0 else max(v, 0.0) / largest for v in x])


def scale_invariant_tanh(x):
    largest = max(abs(v) for v in x)
    return np.array([0.0 if largest == 0 else v / largest for v in x])


def step(kind, weights, x, output, cell, layer_norm=False):
    """Computes one step of one row: x [E], output [R], cell [H] -> output, cell."""
    gate, squash = {
        "cifg": (sigmoid, tanh),
        "si-cifg": (scale_invariant_sigmoid, scale_invariant_tanh),
    }[kind]
    units = len(cell)
    gates = x @ weights["input_kernel"] + output @ weights["recurrent_kernel"] + weights["bias"]
    forget = gate(gates[:units])
    out = gate(gates[units : 2 * units])
    update = squash(gates[2 * units :])
    cell = np.array([f * c + (1 - f) * g for f, c, g in zip(forget, cell, update, strict=True)])
    hidden = out * squash(cell)
    if layer_norm:
        mean = sum(hidden) / units
        variance = sum((h - mean) ** 2 for h in hidden) / units
        hidden = (hidden - mean) / math.sqrt(variance + LAYER_NORM_EPSILON)
    return (hidden @ weights["projection"] if "projection" in weights else hidden), cell


def states(kind, weights, xs, output=None, cell=None, layer_norm=False):
    """Computes all steps of one row: xs [T, E] -> outputs [T, R], cells [T, H]."""
    units = weights["bias"].shape[0] // 3
    output = np.zeros(weights["recurrent_kernel"].shape[0]) if output is None else output
    cell = np.zeros(units) if cell is None else cell
    outputs, cells = [], []
    for x in xs:
        output, cell = step(kind, weights, x, output, cell, layer_norm)
        outputs.append(output)
        cells.append(cell)
    return np.array(outputs), np.array(cells)


def logits(kind, weights, tokens, layer_norm=False):
    """Returns the logits after each token of one row: tokens [T] -> [T, V]."""
    xs = weights["embedding"][np.asarray(tokens)]
    outputs, _ = states(kind, weights, xs, layer_norm=layer_norm)
    return outputs @ weights["embedding"].T + weights.get("output_bias", 0.0)


def token_losses(kind, weights, tokens, layer_norm=False):
    """Returns the loss of each next token of one row in nats: tokens [T+1] -> [T]."""
    losses = []
    for z, target in zip(logits(kind, weights, tokens[:-1], layer_norm), tokens[1:], strict=True):
        largest = max(z)
        losses.append(math.log(sum(math.exp(v - largest) for v in z)) + largest - z[target])
    return np.array(losses)

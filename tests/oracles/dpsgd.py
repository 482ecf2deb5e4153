"""Runs DP-SGD on softmax regression one example at a time: slow and obviously right."""

import numpy as np


def gradient(weights, x, label):
    logits = x @ weights
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[label] -= 1
    return np.outer(x, p)


def train(features, labels, classes, *, steps, batches, denominator, clip, learning_rate, momentum, noise=None):
    """Returns the mean of the weights over the last half of the steps.

    `batches` holds the rows of each step, and `noise` the array that is added to each step's sum, or None.
    """
    weights = np.zeros((features.shape[1], classes))
    velocity, history = np.zeros_like(weights), []
    for step in range(steps):
        total = np.zeros_like(weights)
        for index in batches[step]:
            part = gradient(weights, features[index], labels[index])
            norm = np.sqrt(np.square(part).sum())
            total += part * min(1.0, clip / norm) if norm > 0 else part
        if noise is not None:
            total += noise[step]
        scale = 1.0 if np.isinf(clip) else clip
        velocity = momentum * velocity + total / (denominator * scale)
        weights = weights - learning_rate * velocity
        history.append(weights)
    return np.mean(history[steps // 2 :], axis=0)

"""DP-SGD on softmax regression, example by example: slow and obviously right."""

import numpy as np


def gradient(weights, x, label):
    logits = x @ weights
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[label] -= 1
    return np.outer(x, p)


def train(features, labels, classes, *, steps, batches, denominator, clip, rate, momentum, noise=None):
    """`batches`: of each step the indices; `noise`: of each step an array, or None. The mean of the last half."""
    weights = np.zeros((features.shape[1], classes))
    velocity, kept = np.zeros_like(weights), []
    for step in range(steps):
        total = np.zeros_like(weights)
        for index in batches[step]:
            found = gradient(weights, features[index], labels[index])
            norm = np.sqrt(np.square(found).sum())
            total += found * min(1.0, clip / norm) if norm > 0 else found
        if noise is not None:
            total += noise[step]
        scale = 1.0 if np.isinf(clip) else clip
        velocity = momentum * velocity + total / (denominator * scale)
        weights = weights - rate * velocity
        kept.append(weights)
    return np.mean(kept[steps // 2 :], axis=0)

"""Runs federated averaging in plain NumPy loops in float64, for a model that can be differentiated by hand.

The model is a table of bigram scores: the logits of the token after `c` are row c of `table` [V, V].
"""

import numpy as np

PAD = 0


def losses(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns the loss of each next token in nats: tokens [B, T+1] -> [B, T]."""
    rows = table[tokens[:, :-1]]
    log_norm = np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1)) + rows.max(-1)
    return log_norm - np.take_along_axis(rows, tokens[:, 1:, None], -1)[..., 0]


def gradient(table: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Returns the gradient of the mean loss over tokens that are not padding, token by token."""
    total = np.zeros_like(table)
    count = 0
    for row in batch:
        for context, target in zip(row[:-1], row[1:], strict=True):
            if target == PAD:
                continue
            probabilities = np.exp(table[context] - table[context].max())
            probabilities /= probabilities.sum()
            probabilities[target] -= 1
            total[context] += probabilities
            count += 1
    return total / max(count, 1)


def sgd_step(table: np.ndarray, batch: np.ndarray, learning_rate: float) -> np.ndarray:
    """Takes one step on the mean loss."""
    return table - learning_rate * gradient(table, batch)


def client_delta(
    table: np.ndarray,
    batches: np.ndarray,
    learning_rate: float,
    proximal: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
) -> np.ndarray:
    trained = table.copy()
    mean, square = np.zeros_like(table), np.zeros_like(table)
    for count, batch in enumerate(batches, 1):
        slope = gradient(trained, batch) + proximal * (trained - table) + weight_decay * trained
        if optimizer == "adam":
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            # Kingma and Ba's second form, in which ε is added before the correction of the root.
            rate = learning_rate * np.sqrt(1 - 0.999**count) / (1 - 0.9**count)
            slope = mean / (np.sqrt(square) + 1e-7) * rate / learning_rate
        trained = trained - learning_rate * slope
    return trained - table


def clipped(delta: np.ndarray, clip: float) -> np.ndarray:
    norm = np.sqrt((delta**2).sum())
    return delta if norm <= clip else delta * (clip / norm)


def examples(batches: np.ndarray) -> int:
    return int((batches[:, :, 1:] != PAD).any(-1).sum())


def rounds(
    table: np.ndarray,
    cohorts: list[list[np.ndarray]],
    learning_rate: float,
    server_learning_rate: float,
    momentum: float,
    weighting: str = "uniform",
    clip: float | None = None,
    denominator: float | None = None,
    noises: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Runs rounds of federated averaging and returns the table.

    `cohorts` holds for each round the batches of each client, and `noises` the array that is added to the round's sum.
    """
    velocity = np.zeros_like(table)
    for number, cohort in enumerate(cohorts):
        total, weight = np.zeros_like(table) if noises is None else noises[number].copy(), 0.0
        for batches in cohort:
            delta = client_delta(table, batches, learning_rate)
            if clip is not None:
                total += clipped(delta, clip)
            else:
                share = examples(batches) if weighting == "examples" else 1.0
                total += share * delta
                weight += share
        mean = total / (denominator if denominator is not None else max(weight, 1e-30))
        velocity = momentum * velocity + mean
        table = table + server_learning_rate * velocity
    return table

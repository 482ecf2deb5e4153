"""This kit: `LinearDPSGD` on the linear task."""

import math
from importlib.metadata import version

import numpy as np

from experiments.bench.peers.dp_common import CLIP, LEARNING_RATE, Loop, Task, UnsupportedError, main
from privacy.linear import LinearDPSGD


def build(task: Task, noise_multiplier: float | None) -> Loop:
    """Poisson samples and the checks at the start of a training are part of it, and timed here; without noise, it is
    everybody in the first batch.
    """
    if task.name != "linear":
        raise UnsupportedError("LinearDPSGD trains linear models")
    batch, private = task.x.shape[1], noise_multiplier is not None
    x, y = task.x.reshape(-1, task.x.shape[2]), task.y.reshape(-1)
    if noise_multiplier == 0:
        x, y = task.x[0], task.y[0]
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    generator, weights = np.random.default_rng(1), np.zeros((x.shape[1], task.weights["bias"].size), np.float32)

    def run(steps: int) -> None:
        training = LinearDPSGD(
            steps,
            rate=batch / len(x),
            expected_batch=batch,
            clip=CLIP if private else math.inf,
            noise_multiplier=noise_multiplier or 0.0,
            learning_rate=LEARNING_RATE * (CLIP if private else 1.0),  # its gradients are over the clip norm
            momentum=0.0,
        )
        weights[:] = training.train(x, y, weights.shape[1], generator)

    return Loop(run, lambda: [weights.copy()])


if __name__ == "__main__":
    main("fedspeak", version("fedspeak"), build)

"""Runs the tasks of `bench dp-step` in JAX Privacy: `vmap` gives per-example gradients inside one compiled step."""

from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_privacy import clipped_grad, noise_addition

from experiments.bench.peers.dp_common import CLIP, LEARNING_RATE, Loop, Task, main

# The fastest of 1, 4, 8, 16, 32, 64 and the whole batch on two cores. The gradients of a whole batch exceed the caches.
_MICROBATCH = {"linear": 64, "mlp": 1, "lstm": 1}


def _logits(weights: dict[str, Any], x: Any) -> Any:
    """Returns the logits of one example, features [d] or tokens [T]."""
    if "embedding" in weights:
        projected = weights["embedding"][x] @ weights["lstm_kernel"] + weights["lstm_bias"]
        zeros = jnp.zeros(weights["recurrent_kernel"].shape[0])

        def step(state: Any, projected_step: Any) -> tuple[Any, Any]:
            output, cell = state
            i, f, g, o = jnp.split(projected_step + output @ weights["recurrent_kernel"], 4)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            output = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (output, cell), output

        x = jax.lax.scan(step, (zeros, zeros), projected)[1]
    elif "hidden_kernel" in weights:
        x = jax.nn.relu(x @ weights["hidden_kernel"] + weights["hidden_bias"])
    return x @ weights["kernel"] + weights["bias"]


def _loss(weights: dict[str, Any], x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(_logits(weights, x), y).mean()


def _mean_loss(weights: dict[str, Any], x: Any, y: Any) -> Any:
    return jax.vmap(_loss, (None, 0, 0))(weights, x, y).mean()


def build(task: Task, noise_multiplier: float | None) -> Loop:
    """Builds a loop with `clipped_grad` and `gaussian_privatizer`, combined with Optax as in JAX Privacy's guide."""
    batch = task.x.shape[1]
    optimizer = optax.sgd(LEARNING_RATE)
    gradient: Any = jax.grad(_mean_loss)
    if noise_multiplier is not None:
        gradient = clipped_grad(
            _loss,
            l2_clip_norm=CLIP,
            batch_argnums=(1, 2),
            keep_batch_dim=False,
            normalize_by=float(batch),
            microbatch_size=_MICROBATCH[task.name],
        )
        stddev = noise_multiplier * gradient.sensitivity()
        if stddev:
            optimizer = optax.chain(noise_addition.gaussian_privatizer(stddev=stddev, prng_key=1), optimizer)

    @jax.jit
    def step(weights: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient(weights, x, y), state)
        return optax.apply_updates(weights, updates), state

    x, y = [jnp.asarray(part) for part in task.x], [jnp.asarray(part) for part in task.y]
    weights: Any = {name: jnp.asarray(value) for name, value in task.weights.items()}
    state = optimizer.init(weights)

    def run(steps: int) -> None:
        nonlocal weights, state
        for number in range(steps):
            weights, state = step(weights, state, x[number % len(x)], y[number % len(x)])
        jax.block_until_ready(weights)

    return Loop(run, lambda: [np.array(weights[name]) for name in task.weights])


if __name__ == "__main__":
    main("JAX Privacy", version("jax-privacy"), build)

"""Holds the workloads' models in JAX: pure functions from weights (by the workload's names) and x to logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Weights = dict[str, Any]


def _lstm(weights: Weights, x: Any) -> Any:
    # The input projections of all time steps are one matrix product, before the scan over time.
    projected = weights["embedding"][x.T] @ weights["kernel"] + weights["bias"]
    zeros = jnp.zeros((x.shape[0], weights["recurrent_kernel"].shape[0]))

    def step(state: Any, projected_step: Any) -> tuple[Any, Any]:
        output, cell = state
        i, f, g, o = jnp.split(projected_step + output @ weights["recurrent_kernel"], 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        output = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (output, cell), output

    outputs = jax.lax.scan(step, (zeros, zeros), projected)[1]
    hidden = outputs.swapaxes(0, 1) @ weights["projection_kernel"] + weights["projection_bias"]
    return hidden @ weights["output_kernel"] + weights["output_bias"]


def _si_cifg(weights: Weights, x: Any) -> Any:
    projected = weights["embedding"][x.T] @ weights["input_kernel"] + weights["bias"]
    units, embedding = weights["projection"].shape

    def step(state: Any, projected_step: Any) -> tuple[Any, Any]:
        output, cell = state
        forget, out, update = jnp.split(projected_step + output @ weights["recurrent_kernel"], 3, axis=-1)
        forget, out, update = _sigmoid(forget), _sigmoid(out), _tanh(update)
        cell = forget * cell + (1 - forget) * update
        output = (out * _tanh(cell)) @ weights["projection"]
        return (output, cell), output

    start = (jnp.zeros((x.shape[0], embedding)), jnp.zeros((x.shape[0], units)))
    outputs = jax.lax.scan(step, start, projected)[1]
    return outputs.swapaxes(0, 1) @ weights["embedding"].T


def _sigmoid(x: Any) -> Any:
    positive = jax.nn.relu(x)
    return _divide(positive, jnp.max(positive, axis=-1, keepdims=True))


def _tanh(x: Any) -> Any:
    return _divide(x, jnp.max(jnp.abs(x), axis=-1, keepdims=True))


def _divide(x: Any, largest: Any) -> Any:
    # A row of zeros gives zeros, and its gradient is finite.
    return x / jnp.where(largest > 0, largest, 1.0)


def _cnn(weights: Weights, x: Any) -> Any:
    for layer in ("first", "second"):
        x = jax.lax.conv_general_dilated(
            x, weights[f"{layer}_kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(x + weights[f"{layer}_bias"])
    return x.reshape(x.shape[0], -1) @ weights["output_kernel"] + weights["output_bias"]


def _logistic(weights: Weights, x: Any) -> Any:
    return x @ weights["kernel"] + weights["bias"]


LOGITS: dict[str, Callable[[Weights, Any], Any]] = {
    "lstm": _lstm,
    "si-cifg": _si_cifg,
    "cnn": _cnn,
    "logistic": _logistic,
}

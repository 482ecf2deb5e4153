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


def _transformer(weights: Weights, x: Any) -> Any:
    # fedspeak's transformer (`models.transformer`); its heads have 32 entries.
    batch, length = x.shape
    hidden = weights["embedding"][x]
    size = hidden.shape[-1]
    angles = jnp.arange(length)[:, None] * 10000.0 ** (-jnp.arange(0, 32, 2) / 32)
    cosines, sines = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]

    def rotate(heads: Any) -> Any:
        first, second = jnp.split(heads, 2, axis=-1)
        return jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)

    causal = jnp.tril(jnp.ones((length, length), bool))
    for index in range(sum(name.endswith(".inner") for name in weights)):
        block = f"block_{index:02d}"
        heads = (_normalize(hidden) @ weights[f"{block}.query_key_value"]).reshape(batch, length, -1, 32)
        queries, keys, values = jnp.split(heads, 3, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotate(queries), rotate(keys)) * 32**-0.5
        shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        attended = jnp.einsum("bhqk,bkhd->bqhd", shares, values).reshape(batch, length, size)
        hidden = hidden + attended @ weights[f"{block}.attention_output"]
        inner = jax.nn.relu(_normalize(hidden) @ weights[f"{block}.inner"])
        hidden = hidden + inner @ weights[f"{block}.outer"]
    return _normalize(hidden) @ weights["embedding"].T


def _normalize(x: Any) -> Any:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)


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
    "transformer": _transformer,
    "cnn": _cnn,
    "logistic": _logistic,
}

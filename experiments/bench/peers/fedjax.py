"""Runs a workload in FedJAX: clients one after another, one compiled step, padded batches as its guide advises."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.peers.common import Recorder, Request, Workload, run
from experiments.bench.peers.jax_models import LOGITS

MASK = fedjax.EXAMPLE_MASK_KEY


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains with federated averaging, written with `fedjax.for_each_client` as FedJAX's own algorithms are."""
    settings = workload.settings
    if settings.model == "cnn":
        # XLA's older CPU runtime is 1.6 times as fast on this model, but crashes on the recurrent models' scan. JAX
        # reads the variable at its first computation.
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_thunk_runtime=false"
    private = request.noise_multiplier is not None
    logits = LOGITS[settings.model]

    def loss(params: Any, batch: Any) -> Any:
        is_target = batch["y"] > 0 if workload.is_text else batch[MASK]
        log_probabilities = jax.nn.log_softmax(logits(params, batch["x"]))
        losses = -jnp.take_along_axis(log_probabilities, batch["y"][..., None], axis=-1)[..., 0]
        return jnp.sum(losses * is_target) / jnp.maximum(jnp.sum(is_target), 1)

    def client_init(server: Any, client: Any) -> Any:
        return server

    def client_step(params: Any, batch: Any) -> tuple[Any, tuple[()]]:
        gradient = jax.grad(loss)(params, batch)
        return jax.tree_util.tree_map(lambda p, g: p - settings.learning_rate * g, params, gradient), ()

    def client_final(server: Any, params: Any) -> Any:
        delta = jax.tree_util.tree_map(lambda new, old: new - old, params, server)
        return fedjax.tree_util.tree_clip_by_global_norm(delta, settings.clip) if private else delta

    train = fedjax.for_each_client(client_init, client_step, client_final, with_step_result=True)
    update = _server_update(request.noise_multiplier, settings.clip)
    datasets = [fedjax.ClientDataset({"x": client.x, "y": client.y}) for client in workload.clients]
    weight = {number: 1.0 if private else client.weight for number, client in enumerate(workload.clients)}
    params = {name: jnp.asarray(value) for name, value in workload.weights.items()}
    recorder.start()
    for number in range(request.rounds):
        cohort = workload.cohorts[number].tolist()
        batches = [(client, datasets[client].padded_batch(batch_size=settings.batch_size), 0.0) for client in cohort]
        total = fedjax.tree_util.tree_zeros_like(params)
        for client, delta, _ in train(params, batches):
            total = fedjax.tree_util.tree_add(total, fedjax.tree_util.tree_weight(delta, weight[client]))
        params = update(params, total, sum(weight[client] for client in cohort), jax.random.PRNGKey(number))
        jax.block_until_ready(params)
        recorder.round_done(lambda: {name: np.asarray(value) for name, value in params.items()})  # noqa: B023
    recorder.write("FedJAX", version("fedjax"))


def _server_update(noise_multiplier: float | None, clip: float) -> Callable[..., Any]:
    @jax.jit
    def update(params: Any, total: Any, weight: Any, key: Any) -> Any:
        keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
        new = {}
        for name, value in params.items():
            summed = total[name]
            if noise_multiplier:
                summed += noise_multiplier * clip * jax.random.normal(keys[name], value.shape)
            new[name] = value + summed / weight
        return new

    return update


if __name__ == "__main__":
    run(peer)

"""FedJAX: one jitted step, clients one after the other; batches of a fixed size with a mask, as its guide advises."""

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


def peer(asked: Request, workload: Workload, recorder: Recorder) -> None:
    """Federated averaging from `fedjax.for_each_client`, FedJAX's way to write an algorithm."""
    settings = workload.settings
    if settings.model == "cnn":
        # XLA's older CPU runtime is 1.6 times as fast here; it crashes on the recurrent models' scan. Read by JAX at
        # its first computation.
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_thunk_runtime=false"
    private = asked.noise_multiplier is not None
    logits = LOGITS[settings.model]

    def loss(params: Any, batch: Any) -> Any:
        real = batch["y"] > 0 if workload.is_text else batch[MASK]
        logged = jax.nn.log_softmax(logits(params, batch["x"]))
        losses = -jnp.take_along_axis(logged, batch["y"][..., None], axis=-1)[..., 0]
        return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)

    def client_init(server: Any, client: Any) -> Any:
        return server

    def client_step(params: Any, batch: Any) -> tuple[Any, tuple[()]]:
        gradient = jax.grad(loss)(params, batch)
        return jax.tree_util.tree_map(lambda p, g: p - settings.learning_rate * g, params, gradient), ()

    def client_final(server: Any, params: Any) -> Any:
        delta = jax.tree_util.tree_map(lambda new, old: new - old, params, server)
        return fedjax.tree_util.tree_clip_by_global_norm(delta, settings.clip) if private else delta

    train = fedjax.for_each_client(client_init, client_step, client_final, with_step_result=True)
    update = _server_update(asked.noise_multiplier, settings.clip)
    datasets = [fedjax.ClientDataset({"x": client.x, "y": client.y}) for client in workload.clients]
    weight = {number: 1.0 if private else client.weight for number, client in enumerate(workload.clients)}
    params = {name: jnp.asarray(value) for name, value in workload.weights.items()}
    recorder.start()
    for number in range(asked.rounds):
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

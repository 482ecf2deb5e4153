"""Holds the client side of the Flower peer, in a module that Ray's actors import, so that they keep the data."""

from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod

from experiments.bench.peers.common import Workload, load
from experiments.bench.peers.torch_models import Model, build, tensors


class _State:
    """Holds what an actor keeps between clients: the workload as tensors, and one model."""

    def __init__(self, path: str) -> None:
        torch.set_num_threads(1)  # one actor runs on each core
        self.workload: Workload = load(path)
        self.model: Model = build(self.workload.settings, self.workload.weights)
        self.data = [tensors(client.x, client.y) for client in self.workload.clients]


@cache
def _load_state(path: str) -> _State:
    return _State(path)


def trainable(model: Model) -> "OrderedDict[str, torch.Tensor]":
    """Returns the trainable parameters by name, as a state dict."""
    return OrderedDict((name, value.detach()) for name, value in model.named_parameters() if value.requires_grad)


def train(message: Message, context: Context) -> Message:
    """Trains on the client that this node simulates in this round and returns the new weights."""
    config: Any = message.content["config"]
    state = _load_state(config["workload"])
    settings = state.workload.settings
    client = int(state.workload.cohorts[config["server-round"] - 1][context.node_config["partition-id"]])
    arrays: Any = message.content["arrays"]
    state.model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
    optimizer = torch.optim.SGD(state.model.parameters(), lr=settings.learning_rate)
    for x, y in zip(*(part.split(settings.batch_size) for part in state.data[client]), strict=True):
        optimizer.zero_grad()
        state.model.loss(x, y).backward()
        optimizer.step()
    examples = 1.0 if config["uniform"] else state.workload.clients[client].weight
    reply = {
        "arrays": ArrayRecord(torch_state_dict=trainable(state.model)),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(content=RecordDict(reply), reply_to=message)


def client_app(clip: bool) -> ClientApp:
    """Builds the client app.

    Args:
      clip: whether Flower's own modifier clips the clients' updates.
    """
    app = ClientApp(mods=[fixedclipping_mod] if clip else [])
    app.train()(train)
    return app

"""The client side of the Flower peer: a module of its own, so that Ray's actors import it and keep the data."""

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
    """What an actor keeps between clients: the workload as tensors, and one model."""

    def __init__(self, path: str) -> None:
        torch.set_num_threads(1)  # there is an actor for each core
        self.workload: Workload = load(path)
        self.model: Model = build(self.workload.settings, self.workload.weights)
        self.data = [tensors(client.x, client.y) for client in self.workload.clients]


@cache
def _state(path: str) -> _State:
    return _State(path)


def trained(model: Model) -> "OrderedDict[str, torch.Tensor]":
    """The trained parameters by name, as a state dict."""
    return OrderedDict((name, value.detach()) for name, value in model.named_parameters() if value.requires_grad)


def train(message: Message, context: Context) -> Message:
    """Trains the client that this node plays in this round."""
    asked: Any = message.content["config"]
    state = _state(asked["workload"])
    settings = state.workload.settings
    client = int(state.workload.cohorts[asked["server-round"] - 1][context.node_config["partition-id"]])
    arrays: Any = message.content["arrays"]
    state.model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
    optimizer = torch.optim.SGD(state.model.parameters(), lr=settings.learning_rate)
    for x, y in zip(*(part.split(settings.batch_size) for part in state.data[client]), strict=True):
        optimizer.zero_grad()
        state.model.loss(x, y).backward()
        optimizer.step()
    examples = 1.0 if asked["uniform"] else state.workload.clients[client].weight
    reply = {
        "arrays": ArrayRecord(torch_state_dict=trained(state.model)),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(content=RecordDict(reply), reply_to=message)


def client_app(clip: bool) -> ClientApp:
    """The client app, with Flower's own clipping if asked for."""
    app = ClientApp(mods=[fixedclipping_mod] if clip else [])
    app.train()(train)
    return app

"""Opacus with ghost clipping: norms from two vectors where a layer allows it, then a second backward pass."""

import warnings
from importlib.metadata import version

import numpy as np
import torch
from opacus import PrivacyEngine
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.bench.peers.dp_common import CLIP, LEARNING_RATE, Loop, Task, main


class _LSTM(nn.Module):
    """Opacus takes no `nn.LSTM`, and its own is of many small steps in Python; not private, PyTorch's stands there."""

    def __init__(self, task: Task, private: bool) -> None:
        super().__init__()
        (vocabulary, embedding), units = task.weights["embedding"].shape, task.weights["recurrent_kernel"].shape[0]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = (DPLSTM if private else nn.LSTM)(embedding, units, batch_first=True)
        self.output = nn.Linear(units, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(x))[0])


def _model(task: Task, private: bool) -> nn.Module:
    """The task's model from its first weights."""
    weights = task.weights
    if task.name == "lstm":
        model: nn.Module = _LSTM(task, private)
        recurrent = dict(model.lstm.named_parameters())
        pairs = [
            (model.embedding.weight, weights["embedding"].T),
            (recurrent["weight_ih_l0"], weights["lstm_kernel"]),
            (recurrent["weight_hh_l0"], weights["recurrent_kernel"]),
            (recurrent["bias_ih_l0"], weights["lstm_bias"]),
            (model.output.weight, weights["kernel"]),
            (model.output.bias, weights["bias"]),
        ]
        # PyTorch adds two biases; with both trained there would be a gradient more.
        nn.init.zeros_(recurrent["bias_hh_l0"])
        recurrent["bias_hh_l0"].requires_grad_(False)
    else:
        shapes = [value.shape for name, value in weights.items() if name.endswith("kernel")]
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [nn.Linear(*shape), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        pairs = list(zip(model.parameters(), weights.values(), strict=True))
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value.T)))
    return model


def build(task: Task, noise_multiplier: float | None) -> Loop:
    """`make_private` with `grad_sample_mode="ghost"`; batches go past its Poisson sampler."""
    x, y = torch.from_numpy(task.x).float(), torch.from_numpy(task.y).long()
    if task.name == "lstm":
        x = x.long()
    private = noise_multiplier is not None
    model = _model(task, private)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss()
    if private:
        data = DataLoader(TensorDataset(x.flatten(0, 1), y.flatten(0, 1)), batch_size=x.shape[1])
        model, optimizer, criterion, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            criterion=criterion,
            data_loader=data,
            noise_multiplier=noise_multiplier,
            max_grad_norm=CLIP,
            poisson_sampling=False,
            grad_sample_mode="ghost",
        )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return criterion(logits, targets)
        if private:
            return criterion(logits.flatten(0, 1), targets.flatten(), shape=logits.shape)
        return criterion(logits.flatten(0, 1), targets.flatten())

    def run(steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            loss(model(x[step % len(x)]), y[step % len(x)]).backward()
            optimizer.step()

    return Loop(run, lambda: [parameter.detach().numpy().copy() for parameter in trained])


if __name__ == "__main__":
    # Opacus' of its own hooks, and that this generator is no secure one.
    warnings.simplefilter("ignore")
    main("Opacus, ghost clipping", version("opacus"), build)

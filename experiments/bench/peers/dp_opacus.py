"""Runs the tasks of `bench dp-step` in Opacus with ghost clipping.

Ghost clipping computes an example's gradient norm from a layer's inputs and output gradients where the layer allows it,
and gets the clipped gradients from a second backward pass.
"""

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
    """Computes the model of the "lstm" task.

    Opacus does not support `nn.LSTM`, so the private model has its `DPLSTM`, a loop of small steps in Python. The plain
    model has PyTorch's LSTM.
    """

    def __init__(self, task: Task, private: bool) -> None:
        super().__init__()
        (vocabulary, embedding), units = task.weights["embedding"].shape, task.weights["recurrent_kernel"].shape[0]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = (DPLSTM if private else nn.LSTM)(embedding, units, batch_first=True)
        self.output = nn.Linear(units, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(x))[0])


def _model(task: Task, private: bool) -> nn.Module:
    """Builds the task's model with its initial weights."""
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
        # PyTorch's LSTM has two biases that are added. Training both would add a second gradient to the norm.
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
    """Builds a loop with `make_private(grad_sample_mode="ghost")`; batches are passed directly, without its sampler."""
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
    # Opacus warns about its own hooks, and that its random generator is not cryptographically secure.
    warnings.simplefilter("ignore")
    main("Opacus, ghost clipping", version("opacus"), build)

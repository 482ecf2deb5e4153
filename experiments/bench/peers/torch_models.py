"""Holds the workloads' models, written as users of PyTorch would write them, and converts their weights.

The workload's weights have the names and layouts that `experiments.bench.workloads` describes.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.bench.peers.common import Settings


class Model(nn.Module):
    """Provides a model with a loss, whose weights can be set from and read as the workload's NumPy arrays."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean cross-entropy of a batch; for text (y int64 `[B, T]`), targets of 0 are padding."""
        logits = self(x)
        if y.ndim == 2:
            return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=0)
        return functional.cross_entropy(logits, y)

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        """Yields each weight's name, its parameter, and the transposition from the workload's layout to PyTorch's."""
        raise NotImplementedError

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Sets the parameters to the workload's weights."""
        with torch.no_grad():
            for name, parameter, axes in self.pairs():
                value = weights[name] if axes is None else weights[name].transpose(axes)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def dump(self) -> dict[str, np.ndarray]:
        """Returns copies of the weights by the workload's names, in its layouts."""
        named = {}
        for name, parameter, axes in self.pairs():
            value = parameter.detach().numpy()
            named[name] = (value if axes is None else value.transpose(np.argsort(axes))).copy()
        return named


class LSTM(Model):
    """Computes embedding, LSTM, linear projection and output layer; the gates' order is the workload's: i, f, g, o."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        vocabulary, embedding = weights["embedding"].shape
        units = weights["recurrent_kernel"].shape[0]
        projection = weights["projection_kernel"].shape[1]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, units, batch_first=True)
        # PyTorch's LSTM has two biases that are added. Training both would double the learning rate of their sum.
        nn.init.zeros_(self.lstm.bias_hh_l0)
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.projection = nn.Linear(units, projection)
        self.output = nn.Linear(projection, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.projection(self.lstm(self.embedding(x))[0]))

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        yield "embedding", self.embedding.weight, None
        yield "kernel", self.lstm.weight_ih_l0, (1, 0)
        yield "recurrent_kernel", self.lstm.weight_hh_l0, (1, 0)
        yield "bias", self.lstm.bias_ih_l0, None
        yield "projection_kernel", self.projection.weight, (1, 0)
        yield "projection_bias", self.projection.bias, None
        yield "output_kernel", self.output.weight, (1, 0)
        yield "output_bias", self.output.bias, None


class SICIFG(Model):
    """Computes fedspeak's SI-CIFG model (`models.cifg`), with one product for the input projections of all steps."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.from_numpy(weights["embedding"].copy()))
        self.input_kernel = nn.Parameter(torch.from_numpy(weights["input_kernel"].copy()))
        self.recurrent_kernel = nn.Parameter(torch.from_numpy(weights["recurrent_kernel"].copy()))
        self.bias = nn.Parameter(torch.from_numpy(weights["bias"].copy()))
        self.projection = nn.Parameter(torch.from_numpy(weights["projection"].copy()))

    def forward(self, x: Tensor) -> Tensor:
        batch, units = x.shape[0], self.projection.shape[0]
        output = self.projection.new_zeros(batch, self.projection.shape[1])
        cell = self.projection.new_zeros(batch, units)
        projected = functional.embedding(x.t(), self.embedding) @ self.input_kernel + self.bias
        outputs = []
        for step in projected:
            forget, out, update = (step + output @ self.recurrent_kernel).chunk(3, dim=1)
            forget, out, update = _sigmoid(forget), _sigmoid(out), _tanh(update)
            cell = forget * cell + (1 - forget) * update
            output = (out * _tanh(cell)) @ self.projection
            outputs.append(output)
        return torch.stack(outputs, dim=1) @ self.embedding.t()

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        for name in ("embedding", "input_kernel", "recurrent_kernel", "bias", "projection"):
            yield name, getattr(self, name), None


def _sigmoid(x: Tensor) -> Tensor:
    positive = torch.relu(x)
    return _divide(positive, positive.amax(dim=1, keepdim=True))


def _tanh(x: Tensor) -> Tensor:
    return _divide(x, x.abs().amax(dim=1, keepdim=True))


def _divide(x: Tensor, largest: Tensor) -> Tensor:
    # A row of zeros gives zeros, and its gradient is finite.
    return x / torch.where(largest > 0, largest, 1.0)


class Transformer(Model):
    """Computes fedspeak's transformer (`models.transformer`) with PyTorch's fused attention; heads have 32 entries."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.names = {name: name.replace(".", "_") for name in weights}
        for name, own in self.names.items():
            self.register_parameter(own, nn.Parameter(torch.from_numpy(weights[name].copy())))
        self.blocks = sum(name.endswith(".inner") for name in weights)
        frequencies = 10000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
        angles = torch.arange(512, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", angles.sin().float())

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape
        hidden = functional.embedding(x, self.embedding)
        size = hidden.shape[-1]
        for index in range(self.blocks):
            kernels = (
                getattr(self, f"block_{index:02d}_{name}")
                for name in ("query_key_value", "attention_output", "inner", "outer")
            )
            query_key_value, attention_output, inner, outer = kernels
            heads = (functional.layer_norm(hidden, (size,)) @ query_key_value).view(batch, length, -1, 32)
            queries, keys, values = heads.transpose(1, 2).chunk(3, dim=1)
            queries, keys = self._rotate(queries, length), self._rotate(keys, length)
            attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            hidden = hidden + attended.transpose(1, 2).reshape(batch, length, size) @ attention_output
            hidden = hidden + torch.relu(functional.layer_norm(hidden, (size,)) @ inner) @ outer
        return functional.layer_norm(hidden, (size,)) @ self.embedding.t()

    def _rotate(self, heads: Tensor, length: int) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        cosines, sines = self.cosines[:length], self.sines[:length]
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        for name, own in self.names.items():
            yield name, getattr(self, own), None


class CNN(Model):
    """Applies two 5 × 5 convolutions with max-pooling and ReLU, and a linear layer, to images `[B, 28, 28, 1]`."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        first, second = weights["first_bias"].size, weights["second_bias"].size
        self.first = nn.Conv2d(1, first, 5, padding=2)
        self.second = nn.Conv2d(first, second, 5, padding=2)
        self.output = nn.Linear(*weights["output_kernel"].shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for layer in (self.first, self.second):
            # Bias and ReLU come after pooling, which gives the same function on a quarter of the entries.
            pooled = functional.max_pool2d(functional.conv2d(x, layer.weight, padding=2), 2)
            x = torch.relu(pooled + layer.bias[:, None, None])
        return self.output(x.permute(0, 2, 3, 1).flatten(1))

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        yield "first_kernel", self.first.weight, (3, 2, 0, 1)
        yield "first_bias", self.first.bias, None
        yield "second_kernel", self.second.weight, (3, 2, 0, 1)
        yield "second_bias", self.second.bias, None
        yield "output_kernel", self.output.weight, (1, 0)
        yield "output_bias", self.output.bias, None


class Logistic(Model):
    """Computes softmax regression."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.output = nn.Linear(*weights["kernel"].shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x)

    def pairs(self) -> Iterator[tuple[str, Tensor, tuple[int, ...] | None]]:
        yield "kernel", self.output.weight, (1, 0)
        yield "bias", self.output.bias, None


_MODELS = {"lstm": LSTM, "si-cifg": SICIFG, "transformer": Transformer, "cnn": CNN, "logistic": Logistic}


def build(settings: Settings, weights: dict[str, np.ndarray]) -> Model:
    """Builds the workload's model with the given weights."""
    model = _MODELS[settings.model](weights)
    model.load(weights)
    return model


def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    """Converts a client's examples to tensors; integers become int64, as PyTorch requires for indices."""
    inputs = torch.from_numpy(x)
    return (inputs if inputs.is_floating_point() else inputs.long()), torch.from_numpy(y).long()

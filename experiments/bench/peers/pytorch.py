"""Runs a workload as a bare loop in PyTorch; the time that a PyTorch framework takes beyond this is its overhead."""

import torch

from experiments.bench.peers.common import Recorder, Request, Workload, run
from experiments.bench.peers.torch_models import build, tensors


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains with federated averaging: clients one after another, each matrix product on all cores."""
    settings = workload.settings
    model = build(settings, workload.weights)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.learning_rate)
    data = {id(client): tensors(client.x, client.y) for client in workload.clients}
    start = [parameter.detach().clone() for parameter in trained]
    recorder.start()
    for number in range(request.rounds):
        total = [torch.zeros_like(value) for value in start]
        weights = 0.0
        for client in workload.cohort(number):
            with torch.no_grad():
                for parameter, value in zip(trained, start, strict=True):
                    parameter.copy_(value)
            for x, y in zip(*(part.split(settings.batch_size) for part in data[id(client)]), strict=True):
                optimizer.zero_grad()
                model.loss(x, y).backward()
                optimizer.step()
            with torch.no_grad():
                delta = [parameter - value for parameter, value in zip(trained, start, strict=True)]
                weight, scale = client.weight, client.weight
                if request.noise_multiplier is not None:
                    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in delta]))
                    weight, scale = 1.0, min(1.0, settings.clip / float(norm))
                for accumulated, value in zip(total, delta, strict=True):
                    accumulated.add_(value, alpha=scale)
                weights += weight
        if request.noise_multiplier:
            for accumulated in total:
                accumulated.add_(torch.randn_like(accumulated), alpha=request.noise_multiplier * settings.clip)
        for value, accumulated in zip(start, total, strict=True):
            value.add_(accumulated, alpha=1 / weights)
        with torch.no_grad():
            for parameter, value in zip(trained, start, strict=True):
                parameter.copy_(value)
        recorder.round_done(model.dump)
    recorder.write("PyTorch, bare loop", torch.__version__)


if __name__ == "__main__":
    run(peer)

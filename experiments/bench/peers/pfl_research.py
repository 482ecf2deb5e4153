"""Runs a workload in Apple's pfl-research with PyTorch: in one process, or in two that share the clients (torchrun)."""

import itertools
import os
import sys
from importlib.metadata import version
from typing import Any

import torch

from experiments.bench.peers.common import Recorder, Request, Workload, parse_request, run
from experiments.bench.peers.torch_models import Model, build, tensors


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains with `FederatedAveraging` on the `SimulatedBackend`, as in the project's own benchmarks."""
    # Importing pfl joins the group of processes, so it must not happen in `main` before torchrun starts.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops.selector import get_framework_module
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism, NormClippingOnly

    settings = workload.settings
    module = _with_metrics(build(settings, workload.weights))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(trained, lr=1.0))
    users = [
        PyTorchTensorDataset(tensors(client.x, client.y), user_id=str(number))
        for number, client in enumerate(workload.clients)
    ]
    order = itertools.cycle(workload.cohorts[: request.rounds].ravel().tolist())
    sizes = {number: int(client.weight) for number, client in enumerate(workload.clients)}
    dataset = FederatedDataset(users.__getitem__, lambda: next(order), sizes)
    steps: list[Any] = [WeightByDatapoints()]
    if request.noise_multiplier is not None:
        clipping = (
            GaussianMechanism(settings.clip, request.noise_multiplier)
            if request.noise_multiplier
            else NormClippingOnly(2, settings.clip)
        )
        steps = [WeightByUser(), CentrallyAppliedPrivacyMechanism(clipping)]

    first = get_framework_module().distributed.global_rank == 0

    class Watch(TrainingProcessCallback):  # type: ignore[misc]
        """Records the time of each round, as a callback."""

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            if first:
                recorder.round_done(module.dump)
            return False, Metrics()

    rounds = NNAlgorithmParams(
        central_num_iterations=request.rounds,
        evaluation_frequency=request.rounds + 1,
        train_cohort_size=workload.cohorts.shape[1],
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=settings.learning_rate, local_batch_size=settings.batch_size
    )
    backend = SimulatedBackend(dataset, dataset, steps)
    recorder.start()
    FederatedAveraging().run(rounds, backend, model, local, callbacks=[Watch()], send_metrics_to_platform=False)
    if first:
        recorder.write("pfl-research, PyTorch", version("pfl"))


def _with_metrics(module: Model) -> Model:
    """Adds the method `metrics`, which pfl requires; it is never called here."""
    module.metrics = lambda *batch: {}  # type: ignore[assignment]
    return module


def main() -> None:
    """Runs the peer; for more than one process, it is started again under torchrun with one thread per process."""
    processes = parse_request().processes
    if processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        os.execv(
            sys.executable,
            [sys.executable, "-m", *launcher, "-m", "experiments.bench.peers.pfl_research", *sys.argv[1:]],
        )
    run(peer)


if __name__ == "__main__":
    main()

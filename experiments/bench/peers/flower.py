"""Runs a workload in Flower's simulation runtime: PyTorch clients on Ray, one actor per core."""

import os

# The packages read these when they are imported. They switch off telemetry, so that nothing uses the network.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")

from typing import Any

import flwr
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg
from flwr.simulation import run_simulation

from experiments.bench.peers import flower_client
from experiments.bench.peers.common import Recorder, Request, Workload, run
from experiments.bench.peers.torch_models import build


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains with `FedAvg`; private runs use Flower's wrapper for clipping on the clients and noise on the server."""
    private = request.noise_multiplier is not None
    cohort = workload.cohorts.shape[1]
    model = build(workload.settings, workload.weights)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy: Any = FedAvg(fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
        if request.noise_multiplier is not None:
            strategy = DifferentialPrivacyClientSideFixedClipping(
                strategy, request.noise_multiplier, workload.settings.clip, cohort
            )

        def watch(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0:
                recorder.start()
                return None

            def weights() -> dict[str, Any]:
                model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
                return model.dump()

            recorder.round_done(weights)
            return None

        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(torch_state_dict=flower_client.trainable(model)),
            num_rounds=request.rounds,
            train_config=ConfigRecord({"workload": os.path.abspath(request.workload), "uniform": private}),
            evaluate_fn=watch,
        )

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": request.processes}}
    run_simulation(server, flower_client.client_app(private), cohort, backend_config=resources)  # type: ignore[arg-type]
    recorder.write("Flower on Ray, PyTorch", flwr.__version__)


if __name__ == "__main__":
    run(peer)

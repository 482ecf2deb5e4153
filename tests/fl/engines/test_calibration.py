import math

import tensorflow_federated as tff
import numpy as np
import pytest

from fl.aggregation import UniformMean
from fl.engines import calibration, cohort
from fl.local_training import LanguageModelling, LocalSGD
from tests.fl import bigram

LOCAL = LocalSGD(0.1, 4, 1, 5, 64)


def calibrate(task, weights=None, candidates=None, work=None, clients=100.0):
    weights = weights or bigram.initial_weights()
    optimizer = tff.learning.optimizers.build_sgdm(1.0)

    def build(clients_at_once):
        if candidates is not None:
            candidates.append(clients_at_once)
        engine = cohort.build(task, weights, LOCAL, UniformMean(), optimizer, clients_at_once=clients_at_once)

        def client_values(clients):
            if work is not None:
                work.append((len(clients), sum(int(client.rows.sum()) for client in clients)))
            return engine.client_values(clients)

        return engine._replace(client_values=client_values)

    return calibration.calibrate(build, task, weights, LOCAL, 2, clients)


@pytest.mark.usefixtures("worker")
def test_calibrate_times_every_candidate_on_same_work():
    candidates: list[int] = []
    work: list[tuple[int, int]] = []
    seconds = calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), candidates=candidates, work=work)
    assert tuple(seconds) == tuple(candidates) == calibration.CANDIDATES
    assert work == [(2 * max(calibration.CANDIDATES), 2 * max(calibration.CANDIDATES) * 2 * LOCAL.batch_size)] * 2
    assert all(taken > 0 and math.isfinite(taken) for taken in seconds.values())


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("cohort_size", "clients"), [(0.2, 1), (5.6, 6), (16.0, 16), (1e6, 16)])
def test_calibrate_trains_at_most_clients_of_a_round(cohort_size, clients):
    work: list[tuple[int, int]] = []
    calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), work=work, clients=cohort_size)
    assert [number for number, _ in work] == [clients, clients]


def test_calibrate_skips_unstackable_task_and_large_model():
    candidates: list[int] = []
    assert calibrate(LanguageModelling(bigram.token_losses, 5), candidates=candidates) == {1: 0.0}
    large = {"table": np.zeros([1, calibration.LARGEST_STACKED + 1], np.float32)}
    assert calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), large, candidates) == {1: 0.0}
    assert not candidates

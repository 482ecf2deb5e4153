import math

import tensorflow_federated as tff
import numpy as np
import pytest

from fl.aggregation import UniformMean
from fl.engines import calibration, cohort
from fl.local_training import LanguageModelling, LocalSGD
from tests.fl import bigram

LOCAL = LocalSGD(0.1, 4, 1, 5, 64)


def calibrate(task, weights=None, built=None, given=None, clients=100.0):
    weights = weights or bigram.initial_weights()
    optimizer = tff.learning.optimizers.build_sgdm(1.0)

    def build(clients_at_once):
        if built is not None:
            built.append(clients_at_once)
        engine = cohort.build(task, weights, LOCAL, UniformMean(), optimizer, clients_at_once=clients_at_once)

        def client_values(clients):
            if given is not None:
                given.append((len(clients), sum(int(client.rows.sum()) for client in clients)))
            return engine.client_values(clients)

        return engine._replace(client_values=client_values)

    return calibration.calibrate(build, task, weights, LOCAL, 2, clients)


@pytest.mark.usefixtures("worker")
def test_every_candidate_is_timed_on_the_same_work():
    built: list[int] = []
    given: list[tuple[int, int]] = []
    seconds = calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), built=built, given=given)
    assert tuple(seconds) == tuple(built) == calibration.CANDIDATES
    assert given == [(2 * max(calibration.CANDIDATES), 2 * max(calibration.CANDIDATES) * 2 * LOCAL.batch_size)] * 2
    assert all(taken > 0 and math.isfinite(taken) for taken in seconds.values())


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("cohort_size", "clients"), [(0.2, 1), (5.6, 6), (16.0, 16), (1e6, 16)])
def test_no_more_clients_are_tried_than_a_round_has(cohort_size, clients):
    given: list[tuple[int, int]] = []
    calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), given=given, clients=cohort_size)
    assert [number for number, _ in given] == [clients, clients]


def test_there_is_nothing_to_choose_for_a_task_that_does_not_stack_or_a_large_model():
    built: list[int] = []
    assert calibrate(LanguageModelling(bigram.token_losses, 5), built=built) == {1: 0.0}
    large = {"table": np.zeros([1, calibration.LARGEST_STACKED + 1], np.float32)}
    assert calibrate(LanguageModelling(bigram.token_losses, 5, stacks=True), large, built) == {1: 0.0}
    assert not built

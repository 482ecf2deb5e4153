import numpy as np
import pytest
import tensorflow_federated as tff

from fl.aggregation import UniformMean
from fl.engines import calibration, cohort
from fl.local_training import LanguageModelling, LocalSGD
from tests.fl import bigram

LOCAL = LocalSGD(0.1, 4, 1, 5, 64)


def calibrate(task, weights=None, built=None):
    weights = weights or bigram.initial_weights()
    optimizer = tff.learning.optimizers.build_sgdm(1.0)

    def build(users_at_once):
        if built is not None:
            built.append(users_at_once)
        return cohort.build(task, weights, LOCAL, UniformMean(), optimizer, users_at_once=users_at_once)

    return calibration.calibrate(build, task, weights, LOCAL, shards=2)


@pytest.mark.usefixtures("worker")
def test_every_candidate_is_timed_on_the_same_work():
    built: list[int] = []
    seconds = calibrate(LanguageModelling(bigram.token_losses, 5), built=built)
    assert tuple(seconds) == tuple(built) == calibration.CANDIDATES
    assert all(0 < taken < 60 for taken in seconds.values())


def test_there_is_nothing_to_choose_for_a_task_that_does_not_stack_or_a_large_model():
    built: list[int] = []
    assert calibrate(LanguageModelling(bigram.token_losses, 5, stacks=False), built=built) == {1: 0.0}
    large = {"table": np.zeros([1, calibration.LARGEST_STACKED + 1], np.float32)}
    assert calibrate(LanguageModelling(bigram.token_losses, 5), large, built) == {1: 0.0}
    assert not built

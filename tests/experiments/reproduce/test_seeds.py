import pytest

from experiments.reproduce.seeds import interval


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0 and found["half"] == pytest.approx(2.484, abs=1e-3)

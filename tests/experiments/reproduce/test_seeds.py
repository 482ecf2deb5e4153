import pytest

from experiments.reproduce.seeds import interval


def test_interval_equals_students_t_interval():
    result = interval([1.0, 2.0, 3.0])
    assert result["mean"] == 2.0 and result["half"] == pytest.approx(2.484, abs=1e-3)

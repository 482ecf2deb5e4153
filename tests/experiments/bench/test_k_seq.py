"""The benchmark of K-SEQ's time: its programme is the optimum, its exponent that of known times, its table complete."""

import numpy as np
import pytest

from experiments.bench import k_seq
from models.decoding.transport import optimal_acceptance
from tests.experiments.processes import call


def test_linear_programme_gives_the_optimum_for_two_drafts():
    for size in (2, 3, 6):
        p, q = k_seq.draw_pair(size, 1)
        assert k_seq.solve_programme(p, q) == pytest.approx(optimal_acceptance(p, q, 2), abs=1e-6)
    # q(T) of disjoint distributions is 0, and equal ones are always accepted.
    assert k_seq.solve_programme(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(0, abs=1e-9)
    assert k_seq.solve_programme(np.full(3, 1 / 3), np.full(3, 1 / 3)) == pytest.approx(1, abs=1e-9)


def rows(exponent, noise=0.0):
    generator = np.random.default_rng(0)
    sizes = [16, 64, *(1 << power for power in range(12, 19))]
    return [
        {
            "vocabulary": size,
            "milliseconds": {"k_seq": (1e-4 * size**exponent * np.exp(noise * generator.normal(size=3))).tolist()},
        }
        for size in sizes
    ]


def test_exponent_is_that_of_the_times_and_its_interval_holds_it():
    assert k_seq.fit_exponent(rows(1.3), "k_seq", 4096) == pytest.approx([1.3] * 3, abs=1e-6)
    estimate, low, high = k_seq.fit_exponent(rows(1.0, 0.1), "k_seq", 4096) or []
    assert 0.9 < low < estimate < high < 1.1 and low < 1 < high
    assert k_seq.fit_exponent(rows(1.0)[:4], "k_seq", 4096) is None


def test_sizes_below_the_least_do_not_count_for_the_exponent():
    of_sizes = {16: 5.0, 64: 5.0, **{1 << power: 1e-3 * (1 << power) for power in (12, 13, 14)}}
    found = [{"vocabulary": size, "milliseconds": {"k_seq": [value]}} for size, value in of_sizes.items()]
    assert k_seq.fit_exponent(found, "k_seq", 4096) == pytest.approx([1] * 3, abs=1e-6)
    assert (k_seq.fit_exponent(found, "k_seq", 16) or [1])[0] < 0.9


@pytest.mark.slow
def test_benchmark_writes_its_table(tmp_path):
    code, out, _ = call("bench", "k-seq", "--vocabulary", "8", "--repetitions", "3", "--output", "out", folder=tmp_path)
    assert code == 0 and out == (tmp_path / "out" / "table.md").read_text()
    assert "| 8 | " in out and "| exponent of V | – | – | – | – |" in out and "differ by at most" in out

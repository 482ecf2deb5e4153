import json
from collections import Counter

import pytest
from click.testing import CliRunner

from experiments.bench.population import SyntheticUsers, population


def test_synthetic_users_come_twice_each_and_are_always_the_same():
    pieces = list(SyntheticUsers(2500))
    assert set(Counter(user for user, _ in pieces).values()) == {2}
    assert len({user for user, _ in pieces}) == 2500
    assert pieces == list(SyntheticUsers(2500))
    assert [user for user, _ in pieces] != sorted(user for user, _ in pieces)
    assert sum(len(sentences) for _, sentences in pieces) == pytest.approx(4 * 2500, rel=0.1)
    assert SyntheticUsers(2500).fingerprint() != SyntheticUsers(2501).fingerprint()


def test_the_bench_writes_its_figures(tmp_path):
    for users in ("1000", "10000"):  # the second time it builds anew
        done = CliRunner().invoke(population, ["--folder", str(tmp_path / "bench"), "--users", users])
        assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "bench" / "population.json").read_text())
    assert found["build"]["users"] == 10_000
    assert 90 < found["build"]["tokens"] / 10_000 < 140
    assert found["build"]["seconds"] > 0.3
    use = found["use"]
    assert use["opening_seconds"] < 1 and use["peak_megabytes"] < 30
    assert [row["expected"] for row in use["cohorts"]] == [10, 100, 1000]
    assert all(abs(row["clients"] - row["expected"]) < 4 * row["expected"] ** 0.5 for row in use["cohorts"])
    assert use["cohorts"][2]["median_seconds"] < 1
    assert found["draw"][-1]["population"] == 10**8 and found["draw"][-1]["seconds"] < 0.01
    table = (tmp_path / "bench" / "population.md").read_text()
    assert done.output == table and table.startswith("10,000 users, ")

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from experiments.bench.population import SyntheticClients, population


def test_synthetic_clients_come_twice_each_and_are_always_the_same():
    pieces = list(SyntheticClients(2500))
    assert set(Counter(user for user, _ in pieces).values()) == {2}
    assert len({user for user, _ in pieces}) == 2500
    assert pieces == list(SyntheticClients(2500))
    assert [user for user, _ in pieces] != sorted(user for user, _ in pieces)
    assert sum(len(sentences) for _, sentences in pieces) == pytest.approx(4 * 2500, rel=0.1)
    assert SyntheticClients(2500).fingerprint() != SyntheticClients(2501).fingerprint()


def test_population_command_writes_results_and_table(tmp_path):
    for clients in ("1000", "10000"):  # the second call replaces the store of the first
        done = CliRunner().invoke(population, ["--output", str(tmp_path / "bench"), "--clients", clients])
        assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "bench" / "population.json").read_text())
    assert results["build"]["clients"] == 10_000
    assert 90 < results["build"]["tokens"] / 10_000 < 140
    assert results["build"]["seconds"] > 0
    use = results["use"]
    assert use["opening_seconds"] > 0 and use["peak_megabytes"] < 30
    assert [row["expected"] for row in use["cohorts"]] == [10, 100, 1000]
    assert all(abs(row["clients"] - row["expected"]) < 4 * row["expected"] ** 0.5 for row in use["cohorts"])
    assert use["cohorts"][2]["median_seconds"] > 0
    assert results["draw"][-1]["population"] == 10**8 and results["draw"][-1]["seconds"] > 0
    table = (tmp_path / "bench" / "population.md").read_text()
    assert done.output == table and table.startswith("10,000 clients, ")

import json

import pytest
from click.testing import CliRunner

from experiments.bench import exact_noise as bench


@pytest.mark.slow
def test_exact_noise_command_writes_results_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CASES", bench.CASES[:1])
    done = CliRunner().invoke(bench.exact_noise, ["--rounds", "2", "--clients", "3", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["preset"], row["weights"], row["clients"]) == ("tiny", 227_904, 3)
    assert 0 < row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
    assert (tmp_path / "table.md").read_text() == done.output
    assert "| tiny | 227,904 | 3 |" in done.output

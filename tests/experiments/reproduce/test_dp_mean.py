import json

import pytest
from click.testing import CliRunner

from experiments.reproduce import dp_mean as study


def test_study_writes_table_results_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_SIZES", (100,))
    monkeypatch.setattr(study, "_EPSILONS", (1.0,))
    monkeypatch.setattr(study, "LIBRARIES", tmp_path / "none")
    done = CliRunner().invoke(study.dp_mean, ["--trials", "4000", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out/table.md").read_text()
    assert text.strip() in done.output and "### n = 100" in text and "| hourglass | add-or-remove-one | 1 |" in text
    results = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {row["relation"] for row in results["rows"]} == {"add-or-remove-one", "replace-one"}
    for row in results["worst"]:
        # An estimate from 4000 trials has a standard error of about 4 %.
        assert row["hourglass"]["error"] == pytest.approx(row["bound"], rel=0.4 if row["epsilon"] == 8 else 0.2)
        assert row["midpoint"]["error"] > 1.7 * row["hourglass"]["error"]
    assert (tmp_path / "out/plot.png").stat().st_size > 1000 and (tmp_path / "out/plot.svg").exists()


def fake_libraries(path, lines):
    path.write_text("#!/bin/sh\n" + "\n".join(f"echo '{json.dumps(line)}'" for line in lines) + "\n")
    path.chmod(0o755)


def test_libraries_run_in_own_environment_and_failures_are_named(tmp_path, monkeypatch):
    line = {"package": "p", "name": "theirs", "relation": "replace-one", "n": 10, "epsilon": 1.0, "mu": 0.5}
    program = tmp_path / "python"
    monkeypatch.setattr(study, "LIBRARIES", program)
    fake_libraries(program, [line | {"errors": [1.0, -1.0], "seconds": 0.5, "version": "1.2"}])
    (row,) = study._measure_libraries([(10, 1.0, 0.5)], 100)
    assert (
        row["error"] == 1.0 and row["relation"] == "replace-one" and row["version"] == "1.2" and row["seconds"] == 0.5
    )
    fake_libraries(program, [line | {"problem": "ImportError: no such module"}])
    with pytest.raises(OSError, match="p failed: ImportError"):
        list(study._measure_libraries([(10, 1.0, 0.5)], 100))
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(OSError, match="dp_mean_libraries.py failed in .*broken"):
        list(study._measure_libraries([(10, 1.0, 0.5)], 100))

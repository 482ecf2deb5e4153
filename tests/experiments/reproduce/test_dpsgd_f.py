import json

import pytest
from click.testing import CliRunner

from experiments.reproduce import dpsgd_f as study
from experiments.reproduce import excess_loss


def test_dpsgd_f_learns_the_counter_example_where_dpsgd_fails(monkeypatch):
    monkeypatch.setattr(study, "_MEANS", (1.0, 1e5))
    near, far = study.counter_example(3)
    assert near["DP-SGD"]["mean"] == near["DPSGD-F"]["mean"] == far["DPSGD-F"]["mean"] == 1.0
    assert far["DP-SGD"]["mean"] < 0.6


@pytest.mark.slow
def test_study_on_digits_finds_dpsgd_f_better_at_epsilon_1(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_MEANS", (1.0,))
    for name in ("DIAMETERS", "DISTANCES", "SIGNALS"):
        monkeypatch.setattr(excess_loss, name, getattr(excess_loss, name)[-2:])
    done = CliRunner().invoke(study.dpsgd_f, ["--data", "digits", "--seeds", "10", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in done.output and "### digits, test accuracy" in text
    first, *_, plain = json.loads((tmp_path / "metrics.json").read_text())["digits"]
    assert first["epsilon"] == 1.0 and plain["plain"] > 0.95
    assert first["DPSGD-F"]["mean"] > first["DP-SGD"]["mean"] + 0.02


def test_folder_without_images_is_refused_with_the_fix(tmp_path):
    done = CliRunner().invoke(study.dpsgd_f, ["--images", str(tmp_path), "--data", "fashion-mnist"])
    assert isinstance(done.exception, FileNotFoundError) and "apt install dataset-fashion-mnist" in str(done.exception)

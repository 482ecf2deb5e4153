import json

import pytest

from experiments.cli import main


@pytest.mark.slow
def test_demo_beats_public_model_and_bigram_within_its_epsilon(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--output", str(tmp_path / "demo")])
    assert stop.value.code == 0
    run = tmp_path / "demo"
    rows = {row["name"]: row for row in json.loads((run / "evaluation.json").read_text())["rows"]}
    assert rows["public model"]["gain"]["low"] > 0
    assert rows["Kneser-Ney bigram of the training clients"]["gain"]["low"] > 0
    report = json.loads((run / "report.json").read_text())
    assert report["guarantee"]["epsilon"] <= 8
    for name in ("report.html", "report.md", "model.tflite", "metrics.jsonl", "ledger.jsonl", "samples.txt"):
        assert (run / name).stat().st_size > 0


@pytest.mark.slow
def test_scratch_config_beats_unigram_by_half_a_nat(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", "scratch", "--output", str(tmp_path / "scratch")])
    assert stop.value.code == 0
    rows = json.loads((tmp_path / "scratch" / "evaluation.json").read_text())["rows"]
    assert next(row for row in rows if row["name"].startswith("unigram"))["gain"]["low"] > 0.5

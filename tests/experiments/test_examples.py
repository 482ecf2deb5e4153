"""The examples run as they stand, in this process: a new one would import TFF for seconds."""

import runpy
import sys
from pathlib import Path

import pytest

from privacy.ledger import Ledger

EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"


@pytest.mark.parametrize("name", ["own_keras_model", "own_loop", "stock_tff"])
def test_example_runs_and_writes_ledger_and_report(name, tmp_path, monkeypatch):
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "run"), "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert len(Ledger.read(tmp_path / "run" / "ledger.jsonl").rounds) == 2
    assert "add-or-remove-one" in (tmp_path / "run" / "report.md").read_text()

import subprocess
import sys
from pathlib import Path

import pytest

from privacy.ledger import Ledger

EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"


@pytest.mark.parametrize("name", ["own_keras_model", "own_loop", "stock_tff"])
def test_example_runs_and_writes_ledger_and_report(name, tmp_path):
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(Ledger.read(tmp_path / "run" / "ledger.jsonl").rounds) == 2
    assert "add-or-remove-one" in (tmp_path / "run" / "report.md").read_text()

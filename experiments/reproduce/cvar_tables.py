"""Tests the groups of tables of people for `fedspeak reproduce cvar-fairness`, beside fairlearn and AIF360."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.intervals import share_interval
from experiments.reproduce.fairness_tables import Table
from fl.fairness import FairnessFrame, GroupSums, max_gap_test, weighted_test

_ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = _ROOT / ".venv-bench" / "fairness" / "bin" / "python"
"""Python with fairlearn and AIF360."""

ALPHA, LEVEL = 0.8, 0.05
SUBSAMPLES = (500, 1000, 2000, 4000)
"""Numbers of rows of a table at which both tests are compared."""

_METRICS = {"error rate": "zero_one_loss", "false positive rate": "false_positive_rate"}


def measure_table(table: Table, runs: int, seed: int) -> dict[str, Any]:
    """Tests a table for two metrics, and for errors also its rows in random order and random parts of it.

    Args:
      table: people whose groups are tested.
      runs: number of random orders, and of parts of each size.
      seed: seed of these.

    Returns:
      "metrics" has a row for each metric. "permuted" has the shares of false alarms of both tests if losses are spread
      over the people at random, so that all groups are alike. "parts" has the shares of rejections of both tests for
      each number of rows.
    """
    rows, sums = [], None
    for name, metric in _METRICS.items():
        frame = FairnessFrame(
            metrics=metric,
            y_true=table.label,
            y_pred=table.prediction,
            sensitive_features=table.features,
            alpha=ALPHA,
            level=LEVEL,
        )
        rows.append({"metric": name, **_facts(frame)})
        sums = frame.tests[0].sums if sums is None else sums
    assert sums is not None
    generator = np.random.default_rng(seed)
    counts, losses = sums.counts.astype(int), sums.sums.astype(int)
    tests = {"permuted": np.zeros(2, int)} | {str(size): np.zeros(2, int) for size in SUBSAMPLES}
    for _ in range(runs):
        permuted = generator.multivariate_hypergeometric(counts, int(losses.sum()))
        tests["permuted"] += rejections(counts, permuted)
        for size in SUBSAMPLES:
            part = generator.multivariate_hypergeometric(counts, size)
            tests[str(size)] += rejections(part, generator.hypergeometric(losses, counts - losses, part))
    shares = {
        name: dict(zip(("cvar", "largest"), (share_interval(int(n), runs)._asdict() for n in hits), strict=True))
        for name, hits in tests.items()
    }
    return {
        "table": table.name,
        "model": table.model,
        "features": list(table.features),
        "metrics": rows,
        "runs": runs,
        "permuted": shares.pop("permuted"),
        "parts": [{"rows": int(size), **found} for size, found in shares.items()],
    }


def rejections(counts: NDArray[Any], losses: NDArray[Any]) -> list[bool]:
    """Returns whether the test of F_α rejects, and whether that of the largest gap does.

    Args:
      counts: integers [groups], numbers of rows.
      losses: integers [groups], numbers of losses among them.
    """
    has_rows = counts > 0
    numbers = counts[has_rows].astype(np.float64), losses[has_rows].astype(np.float64)
    sums = GroupSums(*numbers, numbers[1])
    return [weighted_test(sums, alpha=ALPHA, level=LEVEL).rejects, max_gap_test(sums, level=LEVEL).rejects]


def _facts(frame: FairnessFrame) -> dict[str, Any]:
    result, largest = frame.test, frame.tests[0].max_gap
    outside = (largest.low > 0) | (largest.high < 0)
    return {
        "rows": result.rows,
        "groups": result.groups,
        "combinations": len(frame.groups),
        "untested": result.untested_groups,
        "overall": result.overall,
        "p_value": result.p_value,
        "gap_low": result.gap_low,
        "gap_high": result.gap_high,
        "largest_p": largest.p_value,
        "largest_gap": float(largest.gaps[largest.worst]),
        "worst": ", ".join(map(str, frame.groups[largest.worst])),
        "worst_rows": int(frame.tests[0].sums.counts[largest.worst]),
        "shown_groups": int(outside.sum()),
    }


def run_libraries(table: Table, permutations: int, seed: int) -> list[dict[str, Any]]:
    """Returns what fairlearn and AIF360 say of a table's errors, and of tables with permuted groups.

    Args:
      table: people whose groups are examined.
      permutations: number of random orders of the groups.
      seed: seed of these.

    Raises:
      OSError: a library fails; one line.
    """
    script = Path(__file__).with_name("fairness_libraries.py")
    content = {
        "features": {name: column.tolist() for name, column in table.features.items()},
        "label": table.label.tolist(),
        "prediction": table.prediction.tolist(),
        "permutations": permutations,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        path.write_text(json.dumps(content))
        done = subprocess.run([LIBRARIES, script, path], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1][:200]
        raise OSError(f"{script.name} failed in {LIBRARIES}: {reason}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        if "problem" in line:
            raise OSError(f"{line['package']} failed: {line['problem']}")
    return lines

"""Simulated tests draw fewer random divisions of few rows: their p-values are as exact, and coarser."""

import pytest

from fl.fairness import few_rows


@pytest.fixture(autouse=True)
def few_divisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "DIVISIONS", 199)

"""`generate --report` says what share of the best rule's acceptance several drafts reach, and does not time it."""

import json
import re

import pytest

from experiments.commands import generate, selection
from models import device, device_blocks
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from tests.experiments.commands.test_generate import run
from tests.models.fake_device import FIRST_DRAFTER, FIRST_TARGET, fake

P, Q = (row.astype(float) / row.sum(dtype=float) for row in (FIRST_DRAFTER, FIRST_TARGET))
SHARE = k_seq_acceptance(P, Q, 2) / optimal_acceptance(P, Q, 2)
FIXED = ("generate", "fake.tflite", "--max-new-tokens", 6)


def test_report_and_last_line_say_the_share_of_the_optimum(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(device, "load", lambda path: fake("spectr", 2))
    report = tmp_path / "report.json"
    code, _, err = run(capfd, *FIXED, "--count", 2, "--report", report)
    content = json.loads(report.read_text())
    assert code == 0 and f"K-SEQ accepts {SHARE:.1%} of the optimum" in err
    for part in (*content["requests"], content["total"]):
        assert part["of_optimum"] == pytest.approx(SHARE, rel=1e-9)


def test_speed_does_not_count_the_comparison(tmp_path, capfd, monkeypatch):
    """A block takes a second, a comparison a hundred."""
    now = [0.0]

    def pass_time(seconds):
        now[0] += seconds

    monkeypatch.setattr(device, "load", lambda path: fake("spectr", 2, lambda kind: pass_time(1)))
    monkeypatch.setattr(device_blocks, "optimal_acceptance", lambda *arguments: pass_time(100) or 1.0)
    monkeypatch.setattr(generate.time, "perf_counter", lambda: now[0])
    for options in ((), ("--report", tmp_path / "report.json")):
        now[0] = 0.0
        code, _, err = run(capfd, *FIXED, *options)
        assert code == 0 and re.match(r"6 tokens, 2 tokens/s", err)
    assert now[0] > 300


@pytest.mark.parametrize(("decoding", "share"), [("spectr", SHARE), ("tree", 1.0), ("block", None)])
def test_report_of_best_of_says_the_share_of_the_optimum(tmp_path, capfd, monkeypatch, decoding, share):
    monkeypatch.setattr(device, "load", lambda path: fake(decoding, 2))
    report = tmp_path / "report.json"
    options = ("--best-of", 3, "--reward", "length", "--count", 2, "--report", report)
    code, _, err = run(capfd, *FIXED, *options)
    found = json.loads(report.read_text())["total"]["acceptance"]
    assert code == 0 and (found["calls"], found["accepted"]) == (18, [18])
    assert found["of_optimum"] == (None if share is None else pytest.approx(share, rel=1e-9))
    assert ("of the optimum" in err) == (share is not None)


def test_best_of_draws_once_without_a_report(capfd, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(device, "load", lambda path: fake("spectr", 2, calls.append))
    code, _, err = run(capfd, *FIXED, "--best-of", 3, "--reward", "length")
    assert code == 0 and calls == ["generate"] * 3 and "of the optimum" not in err


def test_best_of_counts_the_seconds_of_the_draws_alone(tmp_path, capfd, monkeypatch):
    now = [0.0]

    def called(kind):
        now[0] += 1 if kind == "generate" else 100

    monkeypatch.setattr(device, "load", lambda path: fake("spectr", 2, called))
    monkeypatch.setattr(selection.time, "perf_counter", lambda: now[0])
    code, _, err = run(capfd, *FIXED, "--best-of", 3, "--reward", "length", "--report", tmp_path / "report.json")
    assert code == 0 and "18 tokens, 6 tokens/s" in err and now[0] > 300

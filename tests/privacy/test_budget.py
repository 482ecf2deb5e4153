"""Tests of budgets: every release is recorded before its noise is drawn, and none exceeds the budget."""

import copy
import html
import json
import os
import pickle
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from privacy import Budget, Releases, dp_mean, dp_quantile, mean_in_ball, report
from privacy.accounting.costs import Gaussian, Pure
from privacy.accounting.guarantee import EXACT, Guarantee
from privacy.linear.classifier import DPLinearClassifier
from privacy.noise import exact
from privacy.noise.randomness import SeededRandomness
from privacy.statistics.mean import BoundedMean

AGES = [34.0, 71.0, 25.0, 48.0, 52.0]


def guarantee(**changes) -> Guarantee:
    fields: dict[str, Any] = {
        "mechanism": "a sum",
        "costs": (Pure(0.5),),
        "relation": "add-or-remove-one",
        "delta": 0.0,
        "noise": EXACT,
    }
    return Guarantee(**(fields | changes))


def test_every_private_function_records_its_release(tmp_path):
    path = tmp_path / "ledger.jsonl"
    vectors = np.random.default_rng(0).normal(size=(200, 3))
    with Releases.open(path, Budget(8.0, 1e-5)) as ledger:
        results: list[Any] = [
            dp_mean(AGES, 0, 100, 1.0, ledger=ledger),
            BoundedMean(0, 100, 0.5, "gaussian", delta=1e-6).release([[1], [1]], ledger=ledger),
            dp_quantile(AGES, 0.5, 0, 100, 1, 0.5, ledger=ledger),
            mean_in_ball(vectors, 1.0, 0.5, 1e-6, ledger=ledger),
        ]
        model = DPLinearClassifier(1.0, classes=(0, 1), steps=5, sampling_probability=1.0)
        model.fit(vectors, (vectors[:, 0] > 0).astype(int), ledger=ledger)
        assert ledger.releases == [*(result.guarantee for result in results), model.guarantee_]
        spent = ledger.spent
    again = Releases.read(path)
    assert again.releases == ledger.releases and again.budget == Budget(8.0, 1e-5)
    assert again.spent == spent < 3.5 and not again.has_seeded_noise
    assert oct(path.stat().st_mode)[-3:] == "600"


def test_release_is_on_disk_before_noise_is_drawn(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    lines = []

    def interrupt(*arguments):
        lines.append(len(path.read_bytes().splitlines()))
        raise KeyboardInterrupt

    for name in ("hourglass", "gaussian", "uniform"):
        monkeypatch.setattr(exact, name, interrupt)
    x = np.ones((20, 2))
    releases = [
        lambda ledger: dp_mean(AGES, 0, 100, 0.1, ledger=ledger),
        lambda ledger: dp_quantile(AGES, 0.5, 0, 100, 1, 0.1, ledger=ledger),
        lambda ledger: mean_in_ball(x, 1.0, 0.1, 1e-6, ledger=ledger),
        lambda ledger: DPLinearClassifier(0.1, classes=(0, 1)).fit(x, np.arange(20) % 2, ledger=ledger),
    ]
    with Releases.open(path, Budget(2.0, 1e-5)) as ledger:
        for release in releases:
            with pytest.raises(KeyboardInterrupt):
                release(ledger)
    assert lines == [2, 3, 4, 5]  # the header and one more each time
    assert len(Releases.read(path).releases) == 4


def test_release_above_budget_is_refused_before_noise_is_drawn(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(1.0)) as ledger:
        dp_mean(AGES, 0, 100, 0.7, ledger=ledger)
        before = path.read_bytes()
        monkeypatch.setattr(exact, "hourglass", lambda *_: pytest.fail("noise was drawn"))
        with pytest.raises(
            ValueError, match=r"epsilon would be 1.2, above the budget of 1 \(0.7 is spent\): release less"
        ):
            dp_mean(AGES, 0, 100, 0.5, ledger=ledger)
        with pytest.raises(ValueError, match="release has relation 'replace-one', the budget 'add-or-remove-one'"):
            dp_mean(AGES, 0, 100, 0.1, relation="replace-one", ledger=ledger)
        with pytest.raises(
            ValueError, match="release has delta 1e-06, the budget has 0: use a mechanism of pure epsilon"
        ):
            dp_mean(AGES, 0, 100, 0.1, "gaussian", delta=1e-6, ledger=ledger)
        assert path.read_bytes() == before
        monkeypatch.undo()
        dp_mean(AGES, 0, 100, 0.3, ledger=ledger)  # exactly what is left
    with pytest.raises(ValueError, match="is closed: record inside its `with` block"):
        ledger.record(guarantee(costs=(Pure(1e-12),)))


@pytest.mark.parametrize(
    ("budget", "epsilons"),
    [(1.0, [0.1] * 10), (0.3, [0.1] * 3), (1.0, [0.7, 0.3]), (1.0, [1 / 3] * 3), (0.7, [0.1, 0.2, 0.4])],
)
def test_releases_that_add_up_to_budget_are_accepted(tmp_path, budget, epsilons):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(budget)) as ledger:
        for each in epsilons:
            ledger.record(guarantee(costs=(Pure(each),)))
        assert ledger.spent <= budget


@pytest.mark.parametrize(
    ("budget", "spent", "asked", "message"),
    [
        (1.0, 0.6, 0.400000000001, r"epsilon would be 1.000000000001, above the budget of 1 \(0.6 is spent\)"),
        (1.0, 1.0, 1e-17, r"epsilon would be 1.0000000000000002, above the budget of 1 \(1 is spent\)"),
        (1.0, 0.99999, 0.00002, r"epsilon would be 1.00001, above the budget of 1 \(0.99999 is spent\)"),
        (1.23456789, 1.0, 0.3, r"epsilon would be 1.3, above the budget of 1.23456789 \(1 is spent\)"),
        (1e-9, 4e-10, 7e-10, r"epsilon would be 1.1e-09, above the budget of 1e-09 \(4e-10 is spent\)"),
        (3e8, 2.99999e8, 2e3, r"epsilon would be 3.00001e\+08, above the budget of 3e\+08 \(2.99999e\+08 is spent\)"),
    ],
)
def test_release_slightly_above_budget_is_refused_with_digits_that_show_it(tmp_path, budget, spent, asked, message):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(budget)) as ledger:
        ledger.record(guarantee(costs=(Pure(spent),)))
        with pytest.raises(ValueError, match=message):
            ledger.record(guarantee(costs=(Pure(asked),)))
        assert len(ledger.releases) == 1 and ledger.spent == spent


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-3, 0.3), (0.1, 1e-6), (1.0, 1e-9), (8.0, 1e-5), (2.8e-5, 0.78)])
def test_gaussian_release_of_exactly_the_budget_is_accepted(tmp_path, epsilon, delta):
    releases = (
        lambda ledger: dp_mean(AGES, 0, 100, epsilon, "gaussian", delta=delta, ledger=ledger),
        lambda ledger: mean_in_ball(np.ones((5, 2)), 1.0, epsilon, delta, ledger=ledger),
    )
    for number, release in enumerate(releases):
        with Releases.open(tmp_path / f"{number}.jsonl", Budget(epsilon, delta)) as ledger:
            release(ledger)
            assert 0.99 * epsilon < ledger.spent <= epsilon


def test_impossible_release_is_not_recorded(tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(1.0, 1e-6)) as ledger:
        with pytest.raises(ValueError, match="noise.multiplier .* is too large"):
            mean_in_ball(np.ones((3, 2)), 1.0, 1e-8, 1e-12, ledger=ledger)
        with pytest.raises(ValueError, match="more noise than the grid holds"):
            dp_mean(AGES, 0, 100, 1e-6, "gaussian", delta=1e-300, ledger=ledger)
        assert ledger.releases == []
    with pytest.raises(ValueError, match="has no accounting under Poisson sampling"):
        guarantee(costs=(Gaussian(1.0, 100, 0.01),), relation="replace-one")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64, np.uint8, Fraction])
def test_numbers_of_any_type_are_recorded(tmp_path, kind):
    single: Any = np.float32
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(kind(3), single(1e-6))) as ledger:
        dp_mean(AGES, kind(0), kind(100), kind(1), ledger=ledger)
        dp_mean(AGES, kind(0), kind(100), kind(1), "gaussian", delta=single(1e-6), ledger=ledger)
        dp_quantile(AGES, kind(1), kind(0), kind(100), kind(1), kind(1), ledger=ledger)
        mean_in_ball(np.ones((3, 2)), kind(1), single(0.1), 1e-6, ledger=ledger)
    assert Releases.read(path).releases == ledger.releases
    assert all(
        type(cost.epsilon) in (int, float)
        for release in ledger.releases
        for cost in release.costs
        if type(cost) is Pure
    )


def test_concurrent_threads_keep_budget(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(1.0)) as ledger:
        start, released = threading.Barrier(8), []

        def release():
            start.wait()
            for _ in range(8):
                try:
                    released.append(dp_mean(AGES, 0, 100, 0.05, ledger=ledger))
                except ValueError as error:
                    assert "above the budget of 1" in str(error)

        threads = [threading.Thread(target=release) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(released) == len(Releases.read(path).releases) == 20


def test_forked_process_and_copy_cannot_record(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(1.0)) as ledger:
        before = path.read_bytes()
        if not (child := os.fork()):
            try:
                ledger.record(guarantee())
            except ValueError as error:
                os._exit(42 if "was opened by another process: record in that one" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        ways: list[Any] = [copy.copy, copy.deepcopy, pickle.dumps]
        for way in ways:
            with pytest.raises(TypeError, match="cannot be copied or sent to another process: record where"):
                way(ledger._file)
        with pytest.raises(TypeError, match="cannot be copied"):
            copy.deepcopy(ledger)
        assert path.read_bytes() == before


def test_reopened_ledger_continues_budget(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(1.0)) as ledger:
        ledger.record(guarantee())
        with (
            pytest.raises(BlockingIOError, match="is being written by another process"),
            Releases.open(path, Budget(1.0)),
        ):
            pytest.fail("two writers")
    with Releases.open(path, Budget(1.0)) as ledger:
        assert ledger.spent == 0.5
        ledger.record(guarantee())
        with pytest.raises(ValueError, match="above the budget of 1"):
            ledger.record(guarantee())
    with pytest.raises(ValueError, match="begun under another budget"), Releases.open(path, Budget(2.0)):
        pytest.fail("another budget")


def test_spent_composes_all_releases_in_one_loss_distribution(tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(10.0, 1e-5)) as ledger:
        for _ in range(100):
            ledger.record(guarantee(costs=(Gaussian(10.0),), delta=1e-5))
        assert ledger.spent == pytest.approx(4.3771781, rel=1e-6)


def test_record_takes_one_convolution_and_refused_release_leaves_no_trace(tmp_path, monkeypatch):
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    real_compose, convolutions = PrivacyLossDistribution.compose, []

    def compose(*arguments):
        convolutions.append(arguments)
        return real_compose(*arguments)

    monkeypatch.setattr(PrivacyLossDistribution, "compose", compose)
    with Releases.open(tmp_path / "ledger.jsonl", Budget(1.0, 1e-5)) as ledger:
        for number in range(10):
            ledger.record(guarantee(costs=(Gaussian(50.0 + number), Pure(1e-3)), delta=1e-5))
        assert len(convolutions) <= 3 * 20  # composing all anew for each release would take 100
        spent = ledger.spent
        with pytest.raises(ValueError, match="above the budget of 1"):
            ledger.record(guarantee(costs=(Pure(3.0),)))
        assert ledger.spent == spent and ledger.accountant == "PLD"
    again = Releases.read(tmp_path / "ledger.jsonl")
    assert again.spent == pytest.approx(spent, rel=1e-4)


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "foreign"])
def test_read_names_damaged_line(tmp_path, damage):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(9.0)) as ledger:
        for _ in range(3):
            ledger.record(guarantee())
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "flip":
            lines[2] = lines[2].replace(b"0.5", b"0.1")
        case "cut":
            del lines[1]
        case "swap":
            lines[1], lines[2] = lines[2], lines[1]
        case "foreign":
            lines = [b'{"kind": "header"}\n']
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="ledger .* line . is damaged or out of place"):
        Releases.read(path)


def test_unfinished_line_is_dropped_and_ledger_of_a_run_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Releases.open(path, Budget(9.0)) as ledger:
        ledger.record(guarantee())
    whole = path.read_bytes()
    for tail in (b'{"kind": "rel', b"[" * 100_000):
        path.write_bytes(whole + tail)
        with Releases.open(path, Budget(9.0)) as ledger:
            assert len(ledger.releases) == 1
    path.write_bytes(whole[:-1])
    assert len(Releases.read(path).releases) == 1
    path.write_bytes(whole + b"[" * 100_000 + b"\n")
    with pytest.raises(ValueError, match="line 3 is damaged"):
        Releases.read(path)
    from privacy import FixedClip, Ledger, Poisson, PrivacyPlan

    plan = PrivacyPlan(Poisson(0.1), 100, 3, 1.0, FixedClip(1.0))
    with Ledger.open(tmp_path / "run.jsonl", plan):
        pass
    with pytest.raises(ValueError, match="does not belong to a budget"):
        Releases.read(tmp_path / "run.jsonl")


def test_report_of_releases_states_what_ledger_holds(tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(2.0, 1e-5)) as ledger:
        dp_mean(AGES, 0, 100, 0.5, ledger=ledger)
        dp_mean(AGES, 0, 100, 0.5, "gaussian", delta=1e-6, ledger=ledger)
        releases_report = report.of_releases(ledger)
    assert releases_report.data["guarantee"]["epsilon"] == ledger.spent and releases_report.data["status"] == "private"
    for text in (releases_report.to_markdown().replace("\\", ""), html.unescape(releases_report.to_html())):
        for part in ("one record", "add-or-remove-one", "mean in [0, 100] by hourglass", "every record, once", EXACT):
            assert part in text, part
        assert "budget is ε = 2.00" in text and "<script" not in text
    assert json.loads(releases_report.to_json())["schema"] == "fedspeak-statistics-report/1"
    assert [path.name for path in releases_report.write(tmp_path / "out")] == [
        "report.html",
        "report.md",
        "report.json",
    ]


def test_report_with_seeded_noise_states_that_epsilon_does_not_hold(tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(2.0)) as ledger:
        dp_mean(AGES, 0, 100, 0.5, randomness=SeededRandomness(1), ledger=ledger)
        releases_report = report.of_releases(ledger)
    assert releases_report.data["status"] == "seeded noise"
    assert "ε DOES NOT HOLD" in releases_report.to_markdown() and "ε does not hold" in releases_report.to_html()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "epsilon must be"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"delta": 1}, "delta must lie"),
        ({"delta": float("nan")}, "delta must lie"),
        ({"relation": "zero-out"}, "relation is 'zero-out': for records give"),
        ({"unit": "client"}, "unit must be 'record', got 'client': for clients use a PrivacyPlan"),
    ],
)
def test_invalid_budget_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Budget(**({"epsilon": 1.0} | changes))

"""The test of a run's fairness: clients count once, and noise is charged, refused above the budget, and of its own."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import data, federated_fairness, results
from experiments.display import ConsoleDisplay
from fl.fairness.client_sums import STEPS
from privacy import accounting
from privacy.accounting.guarantee import format_epsilon
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from tests.experiments.processes import call


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


@pytest.fixture
def people(folder) -> Path:
    """Returns a table of all users with a region."""
    path = folder / "regions.csv"
    path.write_text("client,region\n" + "".join(f"u{i},{'north' if i % 2 else 'south'}\n" for i in range(40)))
    return path


def fairness(run: Path, people: Path, *arguments: str) -> tuple[str, ...]:
    columns = ("--groups", "region", "--attributes", str(people))
    return (*"fairness federated".split(), str(run), *columns, "--alpha", "0.5", *arguments)


def test_federated_fairness_counts_each_client_once(run, folder, people, monkeypatch):
    ledger, prepare = (run / "ledger.jsonl").read_bytes(), data.prepare

    def with_many_test_clients(*arguments):  # the run has three
        prepared = prepare(*arguments)
        return dataclasses.replace(prepared, splits=prepared.splits._replace(test=prepared.splits.train))

    monkeypatch.setattr(data, "prepare", with_many_test_clients)
    code, out, err = call(*fairness(run, people, "--output", str(run / "fair")), folder=folder)
    clients = Ledger.read(run / "ledger.jsonl").plan.population
    assert code == 0, err
    assert f"{clients} clients of 2 groups, sampling: given counts" in out
    assert f"client: {clients} test clients, of whom 0 have no token" in out
    assert "none: exact sums, for the operator only, outside any epsilon" in out
    report = json.loads((run / "fair" / "fairness.json").read_text())
    assert (report["unit"], report["privacy"], report["sensitive_features"]) == ("client", None, ["region"])
    assert sum(report["tests"][0]["groups"]["rows"]) == clients
    for name in ("fairness.md", "fairness.html"):
        assert "The unit is the client" in (run / "fair" / name).read_text()
        assert (run / "fair" / name).stat().st_mode & 0o777 == 0o600
    assert (run / "ledger.jsonl").read_bytes() == ledger


def test_federated_fairness_charges_noise_once_even_if_killed_before_it_is_drawn(
    run, folder, people, refuse, monkeypatch
):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    noisy = fairness(run, people, "--noise-multiplier", "2", "--epsilon", "1e6", "--json")
    path = run / "ledger.jsonl"

    def kill(*_):
        assert any("raises ε from" in line for line in notes), "the cost is not shown before"
        assert len(Ledger.read(path).releases) == 1, "noise is drawn before the ledger is written"
        raise ValueError("killed")

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ConsoleDisplay, "note", lambda _, text: notes.append(text))
        patch.setattr(federated_fairness, "rounded_gaussian", kill)
        patch.setattr(results, "write_reports", lambda *_: [])
        assert refuse(*noisy) == "fedspeak: error: killed"
    before, first = path.read_bytes(), call(*noisy, folder=folder)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    again = call(*noisy, folder=folder)
    assert first[0] == 0 and first[1] == again[1] and path.read_bytes() == before
    assert "the same noise is shown again, and costs nothing more" in again[2] and "BUT ε DOES NOT HOLD" in again[2]
    shown = json.loads(first[1])
    ledger = Ledger.read(path)
    spent = accounting.epsilon(ledger.plan, 5, (2.0,)).value
    stated = shown["privacy"]["ε of the run and its releases together"]
    assert stated == f"{format_epsilon(spent)}; it does not hold, because the key is fixed"
    planned = accounting.epsilon(ledger.plan).value
    warning = f"ε is above the {format_epsilon(planned)} of the run's plan, by the releases after it"
    assert spent > planned and shown["privacy"]["warning"] == warning
    assert "every value in the table of attributes, also one that a single client has" in shown["privacy"]["public"]
    assert shown["privacy"]["neighbouring relation"] == "add-or-remove-one"
    rows = shown["tests"][0]["groups"]["rows"]
    assert rows != [190, 200] and np.abs(np.subtract(rows, [190, 200])).max() < 5 * 2 * 2
    for name in ("report.json", "report-release.json"):
        report = json.loads((run / name).read_text())
        assert report["guarantee"]["epsilon"] == spent > report["epsilon_of_rounds"]
        assert report["releases"] == [{"purpose": "fairness by region", "noise_multiplier": 2.0}]
    # Other sums, such as those of other kernels, get noise of their own, and are charged.
    totals[0, 0] += 1
    assert call(*noisy, folder=folder)[1] != first[1]
    assert [entry.noise_multiplier for entry in Ledger.read(path).releases] == [2.0, 2.0]


def test_noise_of_federated_fairness_has_three_independent_columns_of_their_own_size():
    """All bounds are five standard errors of 2,000 groups."""
    noise = federated_fairness.draw_noise(b"s" * 32, 1.5, 2000) / STEPS**2
    np.testing.assert_allclose(noise.std(0), [1.5, 1.5 / np.sqrt(2), 1.5], rtol=5 / np.sqrt(2 * 2000))
    assert np.abs(np.corrcoef(noise.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(2000)
    # The middle stream is not a copy of the outer one, in the order in which that was drawn.
    outer = noise[:, [0, 2]].ravel()[:2000]
    assert abs(np.corrcoef(noise[:, 1], outer)[0, 1]) < 5 / np.sqrt(2000)


def test_release_is_charged_for_the_sensitivity_of_the_relation():
    assert federated_fairness.relative_multiplier(2.0, "add-or-remove-one") == 2.0
    assert federated_fairness.relative_multiplier(2.0, "zero-out") == 2.0
    assert federated_fairness.relative_multiplier(2.0, "replace-one") == pytest.approx(np.sqrt(2))
    with pytest.raises(KeyError):  # a relation for which no one has worked out the sensitivity
        federated_fairness.relative_multiplier(2.0, "another")


def test_a_release_above_the_epsilon_of_the_plan_is_refused_unless_it_is_accepted(
    run, folder, people, refuse, monkeypatch
):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    path = run / "ledger.jsonl"
    plan, before = Ledger.read(path).plan, path.read_bytes()
    planned, after = (accounting.epsilon(plan, 5, releases).value for releases in ((), (2.0,)))
    shown = [format_epsilon(value) for value in (planned, after)]
    refusal = refuse(*fairness(run, people, "--noise-multiplier", "2"))
    accepted = f"{math.ceil(after * 100) / 100:g}"
    assert f"--noise-multiplier 2 raises ε from {shown[0]} to {shown[1]}, above the {shown[0]} of the plan" in refusal
    assert refusal.endswith(f"add more noise, or accept it by --epsilon {accepted}\n".rstrip())
    less = f"{after * 0.999:g}"
    assert f"above --epsilon {less}" in refuse(*fairness(run, people, "--noise-multiplier", "2", "--epsilon", less))
    assert path.read_bytes() == before
    code, out, err = call(*fairness(run, people, "--noise-multiplier", "2", "--epsilon", accepted), folder=folder)
    assert code == 0, err
    # The exact numbers of clients are not published beside noisy sums.
    assert "test clients, of whom" not in out and "exact sums" not in out
    # What is charged already costs nothing more, and needs no acceptance.
    again = call(*fairness(run, people, "--noise-multiplier", "2"), folder=folder)
    assert again[:2] == (0, out)


def test_noise_is_computed_from_the_epsilon_that_is_to_hold(run, folder, people, refuse, monkeypatch):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    path = run / "ledger.jsonl"
    plan = Ledger.read(path).plan
    target = accounting.epsilon(plan, 5, (1.5,)).value
    code, _, err = call(*fairness(run, people, "--epsilon", f"{target!r}"), folder=folder)
    assert code == 0, err
    (release,) = Ledger.read(path).releases
    assert 1.5 * 0.9999 <= release.noise_multiplier <= 1.5 * 1.003
    assert accounting.epsilon(plan, 5, (release.noise_multiplier,)).value <= target
    assert f"takes --noise-multiplier {release.noise_multiplier!r}; repeat it with that" in err
    assert "leaves no room for a release" in refuse(*fairness(run, people, "--epsilon", f"{0.99 * target!r}"))
    assert "--epsilon must be" in refuse(*fairness(run, people, "--epsilon", "nan"))


def test_keys_of_another_run_draw_no_noise(run, people, refuse, monkeypatch):
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: np.ones((2, 3), np.int64))
    before = (run / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(federated_fairness.assembly, "load_keys", lambda *_, **__: RunKeys(b"x" * 32, is_fixed=False))
    assert "the keys are not those of the rounds in" in refuse(
        *fairness(run, people, "--noise-multiplier", "2", "--epsilon", "1e6")
    )
    assert (run / "ledger.jsonl").read_bytes() == before


def test_federated_fairness_refuses_what_it_cannot_test(run, people, refuse, tmp_path):
    assert "--attributes is missing" in refuse("fairness", "federated", str(run), "--groups", "role", "--alpha", "0.5")
    assert "--alpha must lie in [0, 1), got 1.0" in refuse(*fairness(run, people, "--alpha", "1"))
    assert "--noise-multiplier must be a finite number above 0" in refuse(
        *fairness(run, people, "--noise-multiplier", "0")
    )
    assert "--noise-multiplier 5000 hides all clients" in refuse(*fairness(run, people, "--noise-multiplier", "5000"))
    (tmp_path / "some.csv").write_text("client,region\nu0,south\nu1,north\n")
    assert "some.csv lacks the client 'u" in refuse(*fairness(run, tmp_path / "some.csv"))
    (tmp_path / "twice.csv").write_text("client,region\nu0,south\nu0,north\n")
    assert "twice.csv names a client twice" in refuse(*fairness(run, tmp_path / "twice.csv"))
    assert not Ledger.read(run / "ledger.jsonl").releases

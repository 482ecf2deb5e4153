"""The block verification study writes its table, results and plot, and refuses what it cannot decode."""

import json

import pytest

from experiments import data
from experiments.reproduce import block_verification, drafters
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters
from tests.experiments.reproduce.small_drafters import SPEAKERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small_drafters.write(folder)
    return folder


@pytest.fixture
def small_study(monkeypatch):
    """Replaces the plays by a few sentences and makes the study short."""
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    monkeypatch.setattr(data, "public_text", lambda config: (["the king and the night"] * 3, ()))
    monkeypatch.setattr(block_verification, "_PROMPT", 4)
    monkeypatch.setattr(block_verification, "_BLOCKS", 3)
    monkeypatch.setattr(block_verification, "DRAFT_LENGTHS", (1, 2))


def interval(estimate):
    return {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}


def row(drafter, apart):
    verified = {
        name: {"sampled": interval(3.0), "expected": interval(3.1), "standard_errors_apart": apart}
        for name in ("speculative", "block", "greedy-block")
    }
    return {
        "drafter": drafter,
        "temperature": 0.6,
        "draft_length": 4,
        "prompts": 10,
        "texts": 2,
        "blocks": 2,
        **verified,
        "invariant": {"sampled": interval(2.5)},
        "gain": {key: interval(7.25) for key in ("sampled", "expected", "same_drafts")},
        "greedy_ahead": {"1": interval(0.2), "2": interval(-0.3)},
    }


def test_table_shows_intervals_gains_and_the_published_numbers():
    table = block_verification.format_table([row("si-cifg", -1.7), row("ngram", 1.2)])
    line = "| si-cifg | 0.6 | 4 "
    verified = "| 3.10 [3.00, 3.20] " * 3
    assert f"{line}{verified}| 2.50 [2.40, 2.60] |" in table
    gains = "| +7.2 [+7.2, +7.3] " * 3
    assert f"{line}{gains}|" in table.replace("[+7.1", "[+7.2").replace("+7.4]", "+7.3]")
    assert f"{line}| +0.20 [+0.10, +0.30] | -0.30 [-0.40, -0.20] |" in table and "| after 1 | after 2 |" in table
    assert "at most 1.7 standard errors away in all 6 cells" in table and "40 calls in each cell" in table
    assert "| 8 | 3.41 | 3.70 | +8.3 |" in table and "arXiv:2403.10444" in table


@pytest.mark.parametrize("row", block_verification._PUBLISHED)
def test_published_gains_are_those_of_the_published_means_up_to_rounding(row):
    _, token, block, gain = row
    assert 100 * (block / token - 1) == pytest.approx(gain, abs=0.4)


@pytest.mark.slow
def test_study_writes_results_table_and_plot(folder, small_study, tmp_path):
    """Runs "reproduce block-verification" with small models on a few sentences."""
    output = tmp_path / "out"
    arguments = ["--models", str(folder), "--prompts", "4", "--texts", "2", "--output", str(output)]
    code, out, err = call("reproduce", "block-verification", *arguments, folder=tmp_path)
    assert code == 0, err
    results = json.loads((output / "metrics.json").read_text())
    assert {"command", "versions", "seed", "rows"} <= results.keys()
    names = [*(name for name in drafters.MODELS if name != drafters.TARGET), "ngram"]
    assert [(row["drafter"], row["temperature"], row["draft_length"]) for row in results["rows"]] == [
        (name, temperature, length) for name in names for temperature in (1.0, 0.6) for length in (1, 2)
    ]
    for found in results["rows"]:
        for name in ("speculative", "block", "greedy-block"):
            assert 1 <= found[name]["expected"]["estimate"] <= found["draft_length"] + 1
            assert abs(found[name]["standard_errors_apart"]) < 5
        if found["draft_length"] == 1:  # token and block verification are the same rule
            assert found["gain"]["same_drafts"]["estimate"] == pytest.approx(0, abs=1e-4)
        assert found["gain"]["same_drafts"]["estimate"] > -1e-4
    assert (output / "table.md").read_text() == out[:-1]
    for name in ("plot.png", "plot.svg"):
        assert (output / name).stat().st_size > 1000


@pytest.mark.slow
def test_study_decodes_with_drafters_of_the_users_choice(folder, small_study, tmp_path):
    options = ["--target", str(folder / "target"), "--drafter", "lookup", "--drafter", "self", "--prompts", "2"]
    code, out, err = call("reproduce", "block-verification", *options, folder=tmp_path)
    assert code == 0, err
    assert "| lookup | 0.6 | 2 |" in out and "| self | 1 | 1 |" in out and "si-cifg" not in out


def test_study_refuses_what_it_cannot_decode(folder, small_study, refuse, tmp_path):
    command = ("reproduce", "block-verification")
    message = refuse(*command, "--models", "nowhere")
    assert "nowhere does not hold the trained models target, " in message
    assert "run fedspeak reproduce drafters first" in message
    target = ("--target", str(folder / "target"))
    assert "--target and --drafter belong together" in refuse(*command, *target)
    assert "the same drafter is given twice" in refuse(*command, *target, *("--drafter", "lookup") * 2)
    same = ("--drafter", str(folder / "target"), "--drafter", "elsewhere/target")
    assert "two folders or files have the same name" in refuse(*command, *target, *same)
    assert "drafter = 'missing': missing" in refuse(*command, *target, "--drafter", "missing")

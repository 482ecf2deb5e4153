"""`fedspeak couple` states exact agreements, draws what it states, and refuses files that hold no distributions."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import distribution_files
from experiments.commands.couple import measure
from experiments.intervals import share_interval
from models.decoding import couplings, numpy_race
from models.decoding.exchange import exchange_agreement, expected_bits
from models.decoding.numpy_ops import LEFT_OUT, seed_words
from tests.experiments.processes import call

P, Q = [0.5, 0.3, 0.2, 0.0], [0.1, 0.3, 0.4, 0.2]


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_couple_states_agreements_bound_and_bits(tmp_path):
    write(tmp_path, p=P, q=Q)
    code, out, _ = call("couple", "p.json", "q.json", "--json", "--error", "0.1", folder=tmp_path)
    assert code == 0
    facts = json.loads(out)
    p, q = np.array(P), np.array(Q)
    assert facts["total_variation"] == pytest.approx(0.4) and facts["best"] == pytest.approx(0.6)
    assert facts["bound"] == pytest.approx(0.6 / 1.4)
    assert facts["bits"] == pytest.approx(expected_bits(p, q, 0.1))
    rows = {row["protocol"]: row for row in facts["protocols"]}
    expected = {
        "weighted MinHash": couplings.darts_agreement(p, q),
        "Gumbel race": couplings.race_agreement(p, q),
        "exchange of few messages": exchange_agreement(p, q, 0.1),
        "maximal coupling": 0.6,
    }
    assert rows.keys() == expected.keys()
    assert {name: row["bits"] for name, row in rows.items()} == {
        "weighted MinHash": 0,
        "Gumbel race": 0,
        "exchange of few messages": pytest.approx(expected_bits(p, q, 0.1)),
        "maximal coupling": None,
    }
    for name, agreement in expected.items():
        assert rows[name]["agreement"] == pytest.approx(agreement)
        # 10,000 draws: 0.025 is five standard deviations, so that a true agreement fails with probability 6e-7.
        assert abs(rows[name]["measured"]["estimate"] - agreement) < 0.025
        assert 0.018 < rows[name]["measured"]["high"] - rows[name]["measured"]["low"] < 0.021
    code, out, _ = call("couple", "p.json", "q.json", folder=tmp_path)
    assert code == 0 and "total variation 0.4000" in out and "P and Q" in out and "0.4286" in out


def test_couple_takes_the_smallest_numbers_and_says_that_many_draws_take_time(tmp_path, monkeypatch):
    least = np.nextafter(0, 1)
    write(tmp_path, p=[least, 1.0, 0.0], q=[0.5, least, 0.5])
    monkeypatch.setattr("experiments.commands.couple._NUMBERS", 29)
    code, out, err = call("couple", "p.json", "q.json", "--draws", "10", folder=tmp_path)  # a warning would be an error
    assert code == 0 and "total variation 1.0000" in out
    assert err == "drawing 10 pairs of 3 tokens by each of four protocols …\n"


def test_couple_draws_again_with_the_same_seed_and_anew_with_another():
    p, q = np.array(P), np.array(Q)
    assert measure(p, q, 500, 3, 0.1) == measure(p, q, 500, 3, 0.1)
    assert measure(p, q, 500, 3, 0.1) != measure(p, q, 500, 4, 0.1)


def test_races_that_are_drawn_in_parts_are_those_of_one_call():
    p, q = np.array(P), np.array(Q)
    noise = numpy_race.gumbels(seed_words(3), np.arange(5000), 0, len(p))
    with np.errstate(divide="ignore"):
        one, other = (numpy_race.race(np.maximum(np.log(x), LEFT_OUT).astype(np.float32), noise) for x in (p, q))
    found = {name: hits for name, _, _, hits in measure(p, q, 5000, 3, 0.1)}
    assert found["Gumbel race"] == np.sum(one == other)


def test_couple_takes_objects_and_a_missing_token_has_probability_0(tmp_path):
    write(tmp_path, p={"a": 0.5, "b": 0.3, "c": 0.2}, q={"d": 0.2, "c": 0.4, "b": 0.3, "a": 0.1})
    p, q = distribution_files.read_pair(tmp_path / "p.json", tmp_path / "q.json")
    np.testing.assert_allclose([p, q], [P, Q])


def test_couple_answers_without_tensorflow(tmp_path):
    write(tmp_path, p=P, q=Q)
    program = (
        "import sys; from experiments.cli import main\n"
        "try: main(['couple', 'p.json', 'q.json'])\n"
        "except SystemExit as stop: print(stop.code, 'tensorflow' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False False"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([0.5, 0.4], "p.json: the probabilities add up to 0.9: they must add up to 1"),
        ([1.2, -0.2], "p.json: probability of token 0 = 1.2: must be a number from 0 to 1"),
        ([-0.1, 1.1], "p.json: probability of token 0 = -0.1: must be"),
        ({"a": 1.0, "b": None}, 'p.json: probability of token "b" = null: must be'),
        ("[NaN, 1]", "p.json: probability of token 0 = NaN: must be"),
        ("[1e999, 1]", "p.json: probability of token 0 = Infinity: must be"),
        pytest.param("[" + "9" * 5000 + "]", "p.json is not the JSON of a distribution", id="huge number"),
        ([True, 0.0], "p.json: probability of token 0 = true: must be"),
        ([[1.0]], "p.json: probability of token 0 = [1.0]: must be"),
        ([], "p.json must hold a non-empty JSON list of probabilities"),
        ("1", "p.json must hold a non-empty JSON list of probabilities"),
        ("[0.5, 0.5", "p.json is not the JSON of a distribution"),
        ('{"a": 0.5, "a": 0.5}', "p.json is not the JSON of a distribution (a token stands there twice)"),
        pytest.param("[" * 100_000, "p.json", id="deep"),
        ([1.0], "p.json has 1 probabilities, q.json has 4: give one for each token"),
        ({"a": 1.0}, "p.json holds an object, q.json holds a list: give two lists or two objects"),
    ],
)
def test_couple_refuses_what_is_no_distribution(content, message, refuse, tmp_path):
    write(tmp_path, p=content, q=Q)
    assert message in refuse("couple", "p.json", "q.json")


def test_couple_refuses_missing_and_huge_files_and_bad_options(refuse, tmp_path, monkeypatch):
    write(tmp_path, p=P, q=Q)
    assert "nowhere.json: No such file" in refuse("couple", "nowhere.json", "q.json")
    assert "--error must lie in (0, 1), got nan" in refuse("couple", "p.json", "q.json", "--error", "nan")
    assert "error = 1e-14" in refuse("couple", "p.json", "q.json", "--error", "1e-14")
    assert "--draws" in refuse("couple", "p.json", "q.json", "--draws", "0")
    monkeypatch.setattr(distribution_files, "LARGEST_SUPPORT", 3)
    assert "p.json and q.json have 4 tokens: the maximum is 3" in refuse("couple", "p.json", "q.json")
    monkeypatch.setattr(distribution_files, "LARGEST_FILE", 10)
    assert "p.json has 20 bytes: the maximum is 10" in refuse("couple", "p.json", "q.json")


def test_share_interval_holds_the_share_in_95_of_100_trials():
    # By exact enumeration over the binomial distribution; Wilson's interval is near 95 % for these.
    from scipy.stats import binom

    for share in (0.1, 0.5, 0.93):
        hits = np.arange(401)
        covers = [low <= share <= high for _, low, high in (share_interval(int(h), 400) for h in hits)]
        assert 0.94 < binom.pmf(hits, 400, share)[covers].sum() < 0.965
    assert share_interval(0, 10).low == 0 and share_interval(10, 10).high == pytest.approx(1)

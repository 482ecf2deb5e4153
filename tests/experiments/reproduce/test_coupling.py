"""The coupling study's agreements equal a direct computation, its searches their known answers; it writes all files."""

import json

import numpy as np
import pytest

from experiments import data
from experiments.reproduce import coupling, coupling_models, coupling_theory, drafters
from models.decoding import couplings
from models.decoding.choices import Processing
from models.decoding.numpy_processing import process
from models.vocabulary import Vocabulary
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters
from tests.experiments.reproduce.small_drafters import SPEAKERS
from tests.models import exported
from tests.models.pretrained.checkpoints import write_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small_drafters.write(folder)
    return folder


@pytest.fixture
def small_study(monkeypatch):
    """Replaces the plays by a few sentences and makes the study short."""
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    monkeypatch.setattr(coupling, "_PAIRS", 3)
    monkeypatch.setattr(coupling, "_DRAWS", 200)
    monkeypatch.setattr(coupling_theory, "WORST_SIZES", (3, 4))
    monkeypatch.setattr(coupling_theory, "_EXCHANGE_SIZES", (4, 16, 64))


def test_means_over_all_contexts_equal_a_direct_computation(folder):
    rows = coupling_models.measure(folder / drafters.TARGET, {"si-cifg": folder / "si-cifg"}, SPEAKERS, 6, 10_000, 0)
    loaded = {name: coupling_models.load_trained(folder / name) for name in (drafters.TARGET, "si-cifg")}
    words = exported.vocabulary()
    text = [data.clients.sequences(np.array(words.document("\n".join(lines)), np.int32), 6) for _, lines in SPEAKERS]
    tokens = np.concatenate(text)
    used = tokens[:, 1:] != 0
    logits = {
        name: model.extend(weights, tokens[:, :-1], model.initial_state(len(tokens)))[0].numpy()[used]
        for name, (model, weights, _) in loaded.items()
    }

    def probabilities(name, temperature):
        powers = np.exp(logits[name].astype(np.float64) / temperature)
        return powers / powers.sum(-1, keepdims=True)

    assert len(rows) == 2
    for row in rows:
        p, q = (probabilities(name, row["temperature"]) for name in (drafters.TARGET, row["drafter"]))
        pairs = list(zip(p, q, strict=True))
        assert row["contexts"] == used.sum()
        for key, agreement in (
            ("total_variation", couplings.total_variation),
            ("bound", couplings.bound),
            ("minhash", couplings.darts_agreement),
            ("gumbel", couplings.race_agreement),
            ("maximal", lambda a, b: np.minimum(a, b).sum()),
        ):
            assert row[key]["estimate"] == pytest.approx(np.mean([agreement(*pair) for pair in pairs]), rel=1e-4)
        assert sorted(point["gumbel"] for point in row["points"]) == pytest.approx(
            sorted(couplings.race_agreement(*pair) for pair in pairs), abs=2e-5
        )


def test_drawn_share_follows_the_agreement_and_equal_models_always_agree(folder):
    # A share of 400 contexts is off by five standard errors with probability 6e-7.
    speakers = [("a", ["the king and the night " * 60])]
    models = {"si-cifg": folder / "si-cifg", "same": folder / drafters.TARGET}
    rows = coupling_models.measure(folder / drafters.TARGET, models, speakers, 6, 400, 0)
    for row in rows:
        if row["drafter"] == "same":
            assert row["gumbel"]["estimate"] == pytest.approx(1) and row["drawn"]["estimate"] == 1
            assert row["total_variation"]["estimate"] == 0
        else:
            error = abs(row["drawn"]["estimate"] - row["gumbel"]["estimate"])
            assert error < 5 * np.sqrt(0.25 / row["contexts"]) and row["drawn"]["estimate"] < 0.98


def test_best_protocol_on_the_worst_pairs_reaches_the_bound_and_no_more():
    for size in (3, 4, 5):
        found = coupling_theory.worst_pairs(size)
        assert found["maps"] == (size - 1) ** size
        for key in ("best", "bound", "gumbel"):
            assert found[key] == pytest.approx((size - 2) / size, abs=1e-12)
        assert found["maximal"] == pytest.approx(1 - 1 / (size - 1))


def test_made_up_pairs_are_ordered_as_the_theory_says():
    for row in coupling_theory.made_up_pairs(2, 0):
        assert row["bound"] <= row["minhash"] + 1e-12 and row["minhash"] <= row["gumbel"] <= row["maximal"]


def test_line_of_the_bits_is_that_of_least_squares():
    x = np.arange(1.0, 6.0)
    fit = coupling_theory.fit_line(x, 3 * x + 2)
    assert fit["slope"]["estimate"] == pytest.approx(3) and fit["intercept"]["estimate"] == pytest.approx(2)
    # For residuals -1, 1, 0, 1, -1 the slope's standard error is sqrt(4 / 3 / 10), Student's factor 3.1824.
    fit = coupling_theory.fit_line(x, 3 * x + 2 + np.array([-1.0, 1, 0, 1, -1]))
    assert fit["slope"]["high"] - fit["slope"]["estimate"] == pytest.approx(3.1824 * np.sqrt(4 / 30), rel=1e-4)


@pytest.mark.slow
def test_study_writes_results_table_and_plots(folder, small_study, tmp_path):
    """Runs "reproduce coupling" with small models on a few sentences."""
    output = tmp_path / "out"
    code, out, err = call(
        "reproduce", "coupling", "--models", str(folder), "--contexts", "10", "--output", str(output), folder=tmp_path
    )
    assert code == 0, err
    results = json.loads((output / "metrics.json").read_text())
    assert {"command", "versions", "seed", "models", "made_up", "worst", "few_messages"} <= results.keys()
    assert {row["drafter"] for row in results["models"]} == drafters.MODELS.keys() - {drafters.TARGET}
    for row in results["few_messages"]["rows"]:
        assert row["agreement"] >= row["maximal"] - row["error"]
    assert (output / "table.md").read_text() == out[:-1]
    for name in ("plot.png", "plot.svg", "bits.png", "bits.svg"):
        assert (output / name).stat().st_size > 1000


@pytest.mark.slow
def test_study_compares_models_of_the_users_choice(folder, small_study, tmp_path):
    options = ["--target", str(folder / "target"), "--drafter", str(folder / "si-cifg"), "--contexts", "10"]
    code, out, err = call("reproduce", "coupling", *options, folder=tmp_path)
    assert code == 0, err
    assert "| si-cifg | 0.6 |" in out and "si-transformer" not in out


@pytest.mark.slow
def test_study_compares_imported_models(small_study, tmp_path):
    write_gguf(tmp_path / "small.gguf")
    for name in ("large", "small"):
        assert call("import", "small.gguf", "--output", name, folder=tmp_path)[0] == 0
    options = ["--target", "large", "--drafter", "small", "--contexts", "10"]
    code, out, err = call("reproduce", "coupling", *options, folder=tmp_path)
    assert code == 0, err
    assert "| small | 1 | 0.000 [0.000, 0.000] | 1.000" in out


def test_study_refuses_what_it_cannot_compare(folder, small_study, refuse, tmp_path):
    message = refuse("reproduce", "coupling", "--models", "nowhere")
    assert "nowhere does not hold the trained models target, " in message
    assert "run fedspeak reproduce drafters first" in message
    target = ("--target", str(folder / "target"))
    assert "--target and --drafter belong together" in refuse("reproduce", "coupling", *target)
    twice = ("--drafter", str(folder / "si-cifg")) * 2
    assert "--drafter: two folders have the same name" in refuse("reproduce", "coupling", *target, *twice)
    assert "missing does not exist" in refuse("reproduce", "coupling", *target, "--drafter", "missing")


def test_drafter_with_another_vocabulary_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "si-cifg", tmp_path / "other")
    pieces = list(exported.vocabulary().pieces)
    pieces[-5], pieces[-6] = pieces[-6], pieces[-5]
    Vocabulary(tuple(pieces)).save(tmp_path / "other" / "vocabulary.json")
    with pytest.raises(
        ValueError, match="other has another vocabulary than .*target: give a drafter with the target's"
    ):
        coupling_models.measure(folder / "target", {"other": tmp_path / "other"}, SPEAKERS, 6, 10, 0)


def test_temperature_of_the_race_is_that_of_the_agreement():
    logits = np.array([0.0, 1.0], np.float32)
    processed = process(logits, Processing(0.6)).astype(np.float64)
    assert np.exp(processed) / np.exp(processed).sum() == pytest.approx(
        coupling_models._softmax(logits / 0.6), abs=1e-7
    )

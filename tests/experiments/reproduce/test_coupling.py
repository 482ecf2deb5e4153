"""The coupling study's agreements equal a direct computation, its searches their known answers; it writes all files."""

import json
import shutil

import numpy as np
import pytest
from scipy.special import softmax

from experiments import data
from experiments.reproduce import coupling, coupling_models, coupling_theory, drafters
from models.decoding import couplings
from models.decoding.choices import Processing
from models.decoding.numpy_processing import process
from models.ngram import learn
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
    rows = coupling_models.measure(
        folder / drafters.TARGET, {"si-cifg": str(folder / "si-cifg")}, SPEAKERS, 6, 10_000, 0
    )
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
    models = {"si-cifg": str(folder / "si-cifg"), "same": str(folder / drafters.TARGET)}
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
def test_study_compares_an_imported_model_with_drafters_of_each_kind(folder, small_study, tmp_path):
    write_gguf(tmp_path / "small.gguf")
    for name in ("large", "small"):
        assert call("import", "small.gguf", "--output", name, folder=tmp_path)[0] == 0
    (tmp_path / "public.txt").write_text("the king and the night in the end")
    assert call("ngram", "public.txt", "--vocabulary", "large", folder=tmp_path)[0] == 0
    names = ("small", "ngram:ngram.npz", str(folder / "si-cifg"))
    options = ["--target", "large", "--contexts", "10", *(word for name in names for word in ("--drafter", name))]
    code, out, err = call("reproduce", "coupling", *options, folder=tmp_path)
    assert code == 0, err
    assert "| small | 1 | 0.000 [0.000, 0.000] | 1.000" in out
    assert "| ngram.npz | 0.6 |" in out and "| si-cifg | 0.6 |" in out


def test_study_refuses_what_it_cannot_compare(folder, small_study, refuse, tmp_path):
    message = refuse("reproduce", "coupling", "--models", "nowhere")
    assert "nowhere does not hold the trained models target, " in message
    assert "run fedspeak reproduce drafters first" in message
    target = ("--target", str(folder / "target"))
    assert "--target and --drafter belong together" in refuse("reproduce", "coupling", *target)
    twice = ("--drafter", str(folder / "si-cifg")) * 2
    assert "--drafter: two folders or files have the same name" in refuse("reproduce", "coupling", *target, *twice)
    assert "missing does not exist" in refuse("reproduce", "coupling", *target, "--drafter", "missing")


def test_drafters_that_are_no_model_of_the_targets_vocabulary_are_compared_as_they_draft(folder, tmp_path):
    words = exported.vocabulary()
    tables = learn([words.document("the king and the night")], words.size, 2, vocabulary_digest=words.digest)
    tables.save(tmp_path / "ngram.npz")
    # The other vocabulary names two pieces by each other's ids, so that its model must read and answer with these.
    changed = np.arange(words.size)
    changed[[-3, -7]] = changed[[-7, -3]]
    shutil.copytree(folder / "si-cifg", tmp_path / "other")
    Vocabulary(tuple(words.pieces[token] for token in changed)).save(tmp_path / "other" / "vocabulary.json")
    forms = {"ngram": f"ngram:{tmp_path / 'ngram.npz'}", "other": str(tmp_path / "other")}
    speakers = [("a", ["the king and the nights"])]
    rows = coupling_models.measure(folder / "target", forms, speakers, 30, 1000, 0)

    tokens = np.array(words.document(speakers[0][1][0]), np.int32)
    assert np.any(changed[tokens] != tokens) and rows[0]["contexts"] == len(tokens) - 1
    model, weights, _ = coupling_models.load_trained(folder / "target")
    drafter, own_weights, _ = coupling_models.load_trained(folder / "si-cifg")
    target = model.extend(weights, tokens[np.newaxis, :-1], model.initial_state(1))[0][0].numpy()
    other = drafter.extend(own_weights, changed[tokens][np.newaxis, :-1].astype(np.int32), drafter.initial_state(1))[0]
    other = other[0].numpy()[:, changed]
    # Neither padding and begin nor the line break, which the end token means, are shared.
    other[:, [0, 1, 3 + ord("\n")]] = -np.inf
    ngram = np.log([tables.probabilities(tokens[: place + 1].tolist()) for place in range(len(tokens) - 1)])
    expected = {"ngram": ngram, "other": other}
    for row in rows:
        p, q = (softmax(logits / row["temperature"], axis=-1) for logits in (target, expected[row["drafter"]]))
        for key, agreement in (("total_variation", couplings.total_variation), ("gumbel", couplings.race_agreement)):
            assert row[key]["estimate"] == pytest.approx(np.mean(list(map(agreement, p, q))), rel=1e-4)


def test_drafter_without_a_distribution_is_refused(folder):
    with pytest.raises(ValueError, match="drafter 'lookup' proposes no token after some texts: compare a model"):
        coupling_models.measure(folder / "target", {"lookup": "lookup"}, SPEAKERS, 6, 10, 0)


def test_temperature_of_the_race_is_that_of_the_agreement():
    logits = np.array([0.0, 1.0], np.float32)
    processed = process(logits, Processing(0.6)).astype(np.float64)
    assert np.exp(processed) / np.exp(processed).sum() == pytest.approx(
        coupling_models._softmax(logits / 0.6), abs=1e-7
    )

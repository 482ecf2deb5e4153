"""The study counts changed texts as a direct comparison does, and explains each by its margin."""

import json
import shutil

import numpy as np
import pytest

from experiments import invariance_runs
from experiments.invariance_runs import BASE, VARIANTS, Family, Probe, compare
from models.presets import preset
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters

TEXTS, TOKENS = 9, 12


def family():
    model = preset("tiny", 40, embedding=8, units=10)
    return Family("small", model, {name: 2 * value for name, value in model.init(0).items()}, start=1)


def test_a_planted_change_is_counted_with_its_position_and_margin(monkeypatch):
    texts = np.random.default_rng(0).integers(3, 40, [TEXTS, TOKENS]).astype(np.int32)
    other = texts.copy()
    other[4, 7:] = 2
    monkeypatch.setattr(invariance_runs, "draw", lambda _, variant, *__: other if variant == VARIANTS[1] else texts)
    found = compare(family(), TEXTS, TOKENS)
    assert found["equal"] == {str(variant): TEXTS - (variant == VARIANTS[1]) for variant in VARIANTS}
    (changed,) = found["changed"]
    assert (changed["variant"], changed["request"], changed["position"]) == (str(VARIANTS[1]), 4, 7)
    assert changed["margin"] == pytest.approx(float(Probe(family(), TOKENS).margins(texts[4], 4)[7]))


@pytest.mark.slow
def test_texts_are_those_of_the_races_that_the_probe_reads():
    """Every drawn token has the largest sum, so that margins belong to the texts; rounding changes none here."""
    own = family()
    texts = invariance_runs.draw(own, BASE, TEXTS, TOKENS)
    probe = Probe(own, TOKENS)
    from models.decoding import numpy_ops, numpy_race

    for request, text in enumerate(texts):
        logits = probe._logits(text, 1, 1)
        noise = numpy_race.gumbels(numpy_ops.seed_words(0), request, 1 + np.arange(TOKENS), 40)
        np.testing.assert_array_equal((logits - logits.max(-1, keepdims=True) + noise).argmax(-1), text)
        assert 0 <= probe.difference(text) < 1e-4
    for variant in VARIANTS[-2:]:
        np.testing.assert_array_equal(invariance_runs.draw(own, variant, TEXTS, TOKENS), texts)


@pytest.mark.slow
def test_command_writes_table_and_results(tmp_path):
    small_drafters.write(tmp_path / "models")
    for path in (tmp_path / "models").iterdir():
        if path.name != "si-cifg":
            shutil.rmtree(path)
    arguments = (
        "--models",
        str(tmp_path / "models"),
        "--texts",
        "3",
        "--tokens",
        "4",
        "--output",
        str(tmp_path / "out"),
    )
    code, out, err = call(*"reproduce invariance".split(), *arguments, folder=tmp_path)
    assert code == 0, err
    results = json.loads((tmp_path / "out/metrics.json").read_text())
    assert results["models"].keys() == {"si-cifg"}
    assert results["models"]["si-cifg"]["equal"].keys() == {str(variant) for variant in VARIANTS}
    assert (tmp_path / "out/table.md").read_text().strip() in out


def test_folder_without_models_is_refused_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, _, err = call("reproduce", "invariance", "--models", str(folder), folder=tmp_path)
        assert code != 0 and f"models = {folder}: has no folder of a trained model" in err
        assert len(err.strip().splitlines()) == 1

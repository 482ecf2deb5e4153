"""The study of several drafts writes its table, results and plot; its numbers are those of plain programs."""

import json

import numpy as np
import pytest
import tensorflow as tf

from experiments import data
from experiments.decoding_modes import parse
from experiments.reproduce import drafters, spectr, tree_efficiency
from models.decoding.drafters import ModelDrafter
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters
from tests.experiments.reproduce.small_drafters import SPEAKERS
from tests.models.decoding.table_model import TableModel, draw_table

COMMAND = "reproduce", "spectr"  # "reproduce spectr"
TARGET = TableModel(draw_table(0, 6))
DRAFTER = ModelDrafter(TableModel(TARGET.table + draw_table(1, 6, 1.0)), {})  # type: ignore[arg-type]
PROMPTS = np.array([[1, 2, 3], [4, 0, 5], [2, 2, 1]], np.int32)


@pytest.mark.slow
def test_study_writes_table_results_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    monkeypatch.setattr(data, "public_text", lambda config: (["the king and the night"] * 3, ()))
    for name, value in (("_PROMPT", 4), ("_BLOCKS", 2), ("MODES", ("block:1", "spectr:2x1", "tree:2"))):
        monkeypatch.setattr(spectr, name, value)
    monkeypatch.setattr(spectr, "_FIRST", (2,))
    small_drafters.write(tmp_path / "models")
    options = ("--models", "models", "--output", "study", "--prompts", "3")
    code, out, _ = call(*COMMAND, *options, folder=tmp_path)
    assert code == 0
    results = json.loads((tmp_path / "study" / "metrics.json").read_text())
    assert {row["drafter"] for row in results["rows"]} == {*drafters.MODELS, "ngram"} - {drafters.TARGET}
    assert (tmp_path / "study" / "plot.png").is_file()
    assert "| ngram | 1 | " in out and "| spectr:2x1 | 2 | " in out


def test_tokens_per_call_are_those_of_the_law():
    """A drafter equal to the target is always accepted, whatever the tree; the mean is exact."""
    equal = ModelDrafter(TARGET, {})  # type: ignore[arg-type]
    for name in ("block:2", "spectr:2x2", "tree:1,1", "distinct-tree:1,1", "multi-path:1x2"):
        decoder = tree_efficiency.Decoder(parse(name), TARGET, {}, equal, 4)  # type: ignore[arg-type]
        np.testing.assert_array_equal(decoder.draw(PROMPTS, 1.0, 0), np.full([3, 4], 3))


def test_summary_compares_trees_with_spectr_of_as_many_drafted_tokens():
    counts = {
        "block:2": np.array([[1, 1], [3, 3]]),
        "spectr:2x2": np.array([[2, 2], [2, 2]]),
        "tree:2,1": np.array([[3, 2], [3, 2]]),
        "tree:3,1": np.array([[3, 3], [3, 3]]),
    }
    block, _, tree, wide = tree_efficiency.summarise({parse(name): values for name, values in counts.items()})
    assert block["tokens"]["estimate"] == 2 and block["drafted"] == 2 and "gain_over_spectr" not in block
    assert tree["gain_over_spectr"]["estimate"] == pytest.approx(25)
    assert "gain_over_spectr" not in wide


def test_first_level_is_the_mean_of_exact_acceptances():
    (found,) = tree_efficiency.first_level(TARGET, {}, DRAFTER, PROMPTS, 0.7, (2,))  # type: ignore[arg-type]
    pairs = []
    for prompt in PROMPTS.tolist():
        tables = (DRAFTER.model, TARGET)
        pairs.append([tf.nn.softmax(model.logits(prompt).astype(np.float64) / 0.7).numpy() for model in tables])  # type: ignore[attr-defined]
    assert found["k_seq"] == pytest.approx(np.mean([k_seq_acceptance(p, q, 2) for p, q in pairs]), abs=1e-6)
    assert found["independent"] == pytest.approx(np.mean([optimal_acceptance(p, q, 2) for p, q in pairs]), abs=1e-6)
    assert found["one"] < found["k_seq"] <= found["independent"] <= found["distinct"]
    assert found["one"] < found["multi_path"] <= found["independent"]
    assert found["one"] < found["distinct_tree"] <= found["distinct"]


def test_share_of_the_optimum_is_a_dash_where_the_drafter_proposes_nothing():
    zero = {"num_drafts": 2, **dict.fromkeys(("one", "k_seq", "independent", "distinct", "greedy"), 0.0)}
    row = {"drafter": "silent", "temperature": 1.0, "prompts": 3, "blocks": 2, "modes": [], "first": [zero]}
    table = spectr.format_table([row])
    assert table.splitlines()[-1] == "| silent | 1 | 2 | 0.000 | 0.000 (–) | 0.000 | 0.000 | 0.000 |"


def test_acceptances_stand_beside_their_share_of_the_optimum_for_the_same_drafts():
    entry = {"one": 0.5, "k_seq": 0.6, "multi_path": 0.7, "independent": 0.8, "distinct": 0.9, "greedy": 0.85}
    first = [{"num_drafts": 2, **entry, "distinct_tree": 0.72}, {"num_drafts": 3, **entry}]
    row = {"drafter": "d", "temperature": 1.0, "prompts": 3, "blocks": 2, "modes": [], "first": first}
    two, three = spectr.format_table([row]).splitlines()[-2:]
    assert two == "| d | 1 | 2 | 0.500 | 0.600 (75.0 %) | 0.700 (87.5 %) | 0.800 | 0.720 (80.0 %) | 0.900 | 0.850 |"
    assert three == "| d | 1 | 3 | 0.500 | 0.600 (75.0 %) | 0.700 (87.5 %) | 0.800 | – | 0.900 | 0.850 |"


def test_every_prompt_has_random_numbers_of_its_own(monkeypatch):
    """Also those that are decoded in another part of the batch: the bootstrap takes prompts as independent."""
    monkeypatch.setattr(tree_efficiency, "_ROWS", 2)
    decoder = tree_efficiency.Decoder(parse("block:3"), TARGET, {}, DRAFTER, 16)  # type: ignore[arg-type]
    counts = decoder.draw(np.tile(PROMPTS[:1], [4, 1]), 1.0, 0)
    assert len({tuple(row) for row in counts.tolist()}) == 4

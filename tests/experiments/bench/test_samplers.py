"""`fedspeak bench samplers`: distances of right and wrong samplers, and the command with fake libraries."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from experiments.bench import samplers
from experiments.bench.peers import samplers_common, samplers_fedspeak
from experiments.bench.peers.samplers_common import DRAFT_LENGTH, Pair
from experiments.bench.sampler_statistics import (
    argmax_draft_distribution,
    build_pairs,
    sampling_floor,
    softmax,
    text_distribution,
    total_variation,
)
from tests.experiments.bench.fakes import Fake

PAIRS = {pair.name: pair for pair in build_pairs()}
SMALL = [pair for pair in PAIRS.values() if pair.tokens > 1]
TEXTS = 4000


def draw_text(pair, generator, draws_drafts=True, has_residual=True):
    """Draws a text by token verification, one random number after another; the two options are bugs if False."""
    p, q, text = softmax(pair.target), softmax(pair.drafter), [0]
    size = len(p)
    while len(text) <= pair.tokens:
        for _ in range(DRAFT_LENGTH):
            row, of_drafter = p[text[-1] % size], q[text[-1] % size]
            drafted = generator.choice(len(row), p=of_drafter) if draws_drafts else int(np.argmax(of_drafter))
            is_accepted = generator.random() < row[drafted] / of_drafter[drafted]
            if not is_accepted:
                weights = np.maximum(row - of_drafter, 0) if has_residual else row
                text.append(generator.choice(len(row), p=weights / weights.sum()))
                break
            text.append(drafted)
        else:
            text.append(generator.choice(p.shape[1], p=p[text[-1] % size]))
    return text[1 : pair.tokens + 1]


def count(pair, texts=TEXTS, **bugs):
    generator = np.random.default_rng(5)
    drawn = np.array([draw_text(pair, generator, **bugs) for _ in range(texts)])
    return np.array(samplers_common.count_texts(drawn, pair.target.shape[1]))


def is_right(counts, probabilities):
    """Whether counts are as near as those of 999 in 1000 right samplers."""
    return total_variation(counts, probabilities) <= sampling_floor(probabilities, counts.sum()).bound


def test_total_variation_is_half_the_sum_of_differences():
    assert total_variation(np.array([6, 2, 2]), np.array([0.5, 0.5, 0.0])) == pytest.approx(0.3)


def test_sampling_floor_of_a_coin_is_its_mean_absolute_deviation():
    floor = sampling_floor(np.array([0.5, 0.5]), 10_000)
    # The frequency is nearly normal with standard deviation 0.005. The mean of 4000 has a standard error of 5e-5.
    assert floor.mean == pytest.approx(0.005 * np.sqrt(2 / np.pi), abs=5 * 5e-5)
    assert 0.014 < floor.bound < 0.020  # 3.29 standard deviations are 0.0165


def test_texts_are_counted_by_their_number_in_base_v():
    assert samplers_common.count_texts(np.array([[0, 1], [1, 0], [1, 0]]), 2) == [0, 1, 2, 0]


def test_enumerated_probabilities_are_products_of_the_tables_rows():
    pair = PAIRS["three tokens"]
    found = text_distribution(pair).reshape([3] * 6)
    assert found.sum() == pytest.approx(1)
    # After tokens 0, 1, 2, 0, 1 and 1; logits are float32.
    assert found[1, 2, 0, 1, 1, 2] == pytest.approx(0.5 * 0.2 * 0.5 * 0.5 * 0.3 * 0.2, rel=1e-5)


@pytest.mark.parametrize("pair", SMALL, ids=lambda pair: pair.name)
def test_right_sampler_is_within_the_floor(pair):
    """Seeds are fixed; with others, one in 1000 right samplers is not."""
    assert is_right(count(pair), text_distribution(pair))


@pytest.mark.parametrize("name", ["three tokens", "reverse-ranked"])
def test_sampler_without_residual_is_above_the_floor(name):
    assert not is_right(count(PAIRS[name], has_residual=False), text_distribution(PAIRS[name]))


@pytest.mark.parametrize("pair", SMALL, ids=lambda pair: pair.name)
def test_argmax_drafts_have_their_enumerated_distribution_not_the_targets(pair):
    counts = count(pair, draws_drafts=False)
    assert is_right(counts, argmax_draft_distribution(pair))
    assert not is_right(counts, text_distribution(pair))


def test_argmax_drafts_of_an_equal_drafter_give_one_text():
    found = argmax_draft_distribution(PAIRS["equal"])
    assert np.count_nonzero(found) == 1


def test_pairs_survive_their_file(tmp_path):
    samplers_common.save_pairs(str(tmp_path / "pairs.npz"), list(PAIRS.values()))
    for read in samplers_common.load_pairs(str(tmp_path / "pairs.npz")):
        known = PAIRS[read.name]
        assert read.tokens == known.tokens
        np.testing.assert_array_equal(read.target, known.target)
        np.testing.assert_array_equal(read.drafter, known.drafter)


@pytest.mark.parametrize("method", ["speculative", "block"])
def test_fedspeak_peer_decodes_with_the_targets_distribution(method):
    pair = PAIRS["reverse-ranked"]._replace(tokens=2)
    decode = samplers_fedspeak.build(pair, method)
    found = decode(tf.constant([1, 0]), tf.range(TEXTS), pair.tokens)
    counts = np.array(samplers_common.count_texts(found.tokens.numpy(), 8))
    assert is_right(counts, text_distribution(pair))


# A script that plays every library; its behaviour follows from the name of the module that it is asked to run.
FAKE = f"""#!{sys.executable}
import sys
from experiments.bench.peers.samplers_common import Measured, main
name = sys.argv.pop(2).rpartition(".")[2]
sys.argv.pop(1)

def measure(pair, sizes):
    if name == "fails" or name == "fails-late" and sizes.seed == 2:
        raise RuntimeError("broken on purpose")
    counts = [sizes.texts] + [0] * (pair.target.shape[1] ** pair.tokens - 1)
    yield Measured("certain", pair.name, counts, [66, 64], [22, 18], {{"tf.function": [3.0, 1.0, 2.0], "XLA": [1.0]}})

print("chatter")
main("Fake", "1.0", measure)
"""


@pytest.fixture
def run_fakes(tmp_path, monkeypatch):
    Fake.write(tmp_path, FAKE)

    def run(**modules):
        monkeypatch.setattr(samplers, "PEERS", tuple(Fake(name, module, None) for name, module in modules.items()))
        done = CliRunner().invoke(
            samplers.samplers, ["--texts", "100", "--turns", "2", "--output", str(tmp_path / "out")]
        )
        return done, json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def test_command_writes_table_and_results(run_fakes, tmp_path):
    done, results = run_fakes(certain="works")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "table.md").read_text() in done.output
    assert results["texts"] == 100 and results["timings"] == 20
    assert [len(pair["methods"]) for pair in results["pairs"]] == [1, 1, 1, 1]
    for pair, found in zip(PAIRS.values(), results["pairs"], strict=True):
        method = found["methods"][0]
        # All texts are one text: the distance is what is left of its probability.
        assert method["total_variation"] == pytest.approx(1 - text_distribution(pair)[0])
        assert method["tokens_per_call"]["estimate"] == pytest.approx(130 / 40)  # of two turns
        assert method["microseconds"] == {"tf.function": [2.0, 1.25, 2.75], "XLA": [1.0, 1.0, 1.0]}
        assert f"| Fake: `certain` | **{method['total_variation']:.4f}** |" in done.output
    assert "likeliest token" not in done.output  # no KerasHub


def test_command_names_failed_libraries_in_one_line_and_keeps_the_others(run_fakes):
    done, results = run_fakes(broken="fails", late="fails-late", certain="works")
    assert done.exit_code == 1
    assert "broken: exit code 1: RuntimeError: broken on purpose" in done.output
    assert "late: exit code 1: RuntimeError: broken on purpose" in done.output
    assert "Traceback" not in done.output
    assert [len(pair["methods"]) for pair in results["pairs"]] == [1, 1, 1, 1]


def test_command_names_libraries_that_are_not_installed(run_fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "python", property(lambda self: tmp_path / "none"))
    done, results = run_fakes(absent="works")
    assert done.exit_code == 0, done.output
    assert "absent: not installed: make bench-peers." in done.output
    assert not any("methods" in pair for pair in results["pairs"])


def test_table_explains_argmax_drafts_where_they_are_measured():
    pair = PAIRS["equal"]
    counts = (100 * argmax_draft_distribution(pair)).astype(int).tolist()
    row = {"method": "m", "pair": "equal", "counts": counts, "decided": [5], "calls": [1], "microseconds": {"a": [1.0]}}
    library = {"peer": "keras-hub", "library": "KerasHub", "version": "1", "rows": [row]}
    found = {
        "texts": 100,
        "long_texts": 1,
        "timings": 1,
        "libraries": [library],
        "pairs": samplers.summarise([pair], [library]),
    }
    assert "is 0.0000 for equal (a correct sampler of it: 0.0000 (0.0000))" in samplers.format_table(found)


def test_each_pair_says_what_its_name_says():
    assert np.array_equal(*PAIRS["equal"][1:3])
    target, drafter = PAIRS["reverse-ranked"][1:3]
    np.testing.assert_array_equal(np.argsort(target, axis=1), np.argsort(-drafter, axis=1))
    large: Pair = PAIRS["large vocabulary"]
    assert large.target.shape == (16, 4096)

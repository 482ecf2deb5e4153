"""Expected tokens equal an enumeration; blocks are those of the decoding loop; summaries pair the prompts."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from experiments.reproduce import block_efficiency
from experiments.reproduce.block_efficiency import METHODS, VERIFIERS, Blocks, Decoder, expected_tokens
from models.decoding.choices import Processing
from models.decoding.drafters import ModelDrafter
from models.decoding.enumeration import enumerate_output
from models.decoding.lossless import draw_pair
from tests.experiments.reproduce.small_drafters import SPEAKERS
from tests.models import exported
from tests.models.decoding import runs
from tests.models.decoding.table_model import TableModel
from tests.oracles import speculation

NEAR: Any = TableModel(runs.TABLES["near"])

BLOCKS = 8


def mean_over_drafts(name, pair):
    """Returns the mean of `expected_tokens` over all drafts, in float64."""
    target, drafter = pair.tables
    drafts = list(itertools.product(range(pair.size), repeat=pair.length))
    prefixes = [[draft[:count] for count in range(pair.length + 1)] for draft in drafts]
    along_target = np.array([[target[prefix] for prefix in row] for row in prefixes])
    along_drafter = np.array([[drafter[prefix] for prefix in row[:-1]] for row in prefixes])
    weight = np.prod([[s[x] for s, x in zip(*row, strict=True)] for row in zip(along_drafter, drafts, strict=True)], 1)
    lengths = tf.fill([len(drafts)], pair.length)
    arguments = tf.constant(along_target), tf.constant(along_drafter), tf.constant(drafts, tf.int32), lengths
    return float(weight @ expected_tokens(name, *arguments).numpy())


@pytest.mark.parametrize("name", VERIFIERS)
def test_mean_of_expected_tokens_over_drafts_equals_the_enumerated_expectation(name):
    generator = np.random.default_rng(3)
    differs = 0
    for number in range(18):
        pair = draw_pair(generator, number)
        accepted = enumerate_output(VERIFIERS[name], *pair.tables, pair.size, pair.length).accepted[0]
        assert mean_over_drafts(name, pair) == pytest.approx(1 + accepted, abs=1e-12)
        other = "block" if name != "block" else "speculative"
        differs += abs(mean_over_drafts(other, pair) - 1 - accepted) > 1e-3
    assert differs >= 3  # so the formula of another rule fails


def test_expected_tokens_ignore_what_comes_after_the_end_of_a_draft():
    generator = np.random.default_rng(0)
    target, drafter = (tf.constant(generator.dirichlet(np.ones(5), [4, n])) for n in (4, 3))
    tokens = tf.constant(generator.integers(0, 5, [4, 3]), tf.int32)
    for name in VERIFIERS:
        short = expected_tokens(name, target[:, :2], drafter[:, :1], tokens[:, :1], tf.fill([4], 1))
        found = expected_tokens(name, target, drafter, tokens, tf.fill([4], 1))
        np.testing.assert_allclose(found, short, rtol=1e-14)
        assert expected_tokens(name, target, drafter, tokens, tf.zeros([4], tf.int32)).numpy().tolist() == [1.0] * 4


def test_expected_tokens_of_the_greedy_rule_are_finite_for_huge_ratios():
    target = tf.constant(np.tile([1.0, 0.0], [1, 9, 1]), tf.float32)
    drafter = tf.constant(np.tile([1e-30, 1.0], [1, 8, 1]), tf.float32)
    found = expected_tokens("greedy-block", target, drafter, tf.zeros([1, 8], tf.int32), tf.constant([8]))
    assert found.numpy() == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def decoder():
    return Decoder(runs.TARGET, {}, ModelDrafter(NEAR, {}), 3, BLOCKS, 512)


@pytest.fixture(scope="module")
def found(decoder):
    prompts = np.random.default_rng(0).integers(0, runs.SIZE, [4000, 3])
    return {name: decoder.draw(name, prompts, np.arange(4000), 0.8, 5) for name in METHODS}


@pytest.mark.parametrize("name", ["speculative", "block", "invariant"])
def test_blocks_are_those_of_decoding_one_row_in_plain_python(decoder, name):
    prompts, processing = [[1, 2, 3], [4, 5, 6], [7, 8, 9]], Processing(temperature=0.7)
    blocks = decoder.draw(name, np.array(prompts), np.arange(3), 0.7, 11)
    for row, prompt in enumerate(prompts):
        oracle = speculation.Row(runs.TARGET.logits, NEAR.logits, prompt, name, 3, 11, row, processing)
        lengths = [accepted + 1 for _, accepted in oracle.run(BLOCKS).blocks]
        assert blocks.counts[row, : len(lengths)].tolist() == lengths and oracle.found.least > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_blocks_are_those_of_the_decoding_loop(decoder, name):
    prompts = [[1, 2, 3], [4, 5, 6]]
    blocks = decoder.draw(name, np.array(prompts), np.arange(2), 0.7, 11)
    asked = runs.request(11, range(2), Processing(temperature=0.7))
    generated = runs.run(prompts, asked, runs.ends(max_new=BLOCKS), name, 3)
    calls = generated.counts.calls.numpy()
    for row in range(2):
        assert calls[row] == np.argmax(np.cumsum(blocks.counts[row]) >= BLOCKS) + 1
        assert blocks.counts[row, : calls[row]].sum() == generated.counts.decided.numpy()[row]


def test_sampled_tokens_follow_the_expected_ones(found):
    # The differences are martingale differences. Six errors of 5 standard errors: probability 4e-6.
    for name in VERIFIERS:
        blocks = found[name]
        difference = blocks.counts - blocks.expected.astype(np.float64)
        assert abs(difference.sum()) < 5 * np.sqrt(np.sum(difference**2))
        wrong = blocks.counts - found["block" if name != "block" else "speculative"].expected.astype(np.float64)
        assert abs(wrong.sum()) > 5 * np.sqrt(np.sum(wrong**2))
    assert np.isnan(found["invariant"].expected).all()


def test_block_verification_expects_no_fewer_tokens_on_any_draft(found):
    blocks = found["block"]
    assert (blocks.expected >= blocks.sequential - 1e-5).all() and (blocks.expected > blocks.sequential + 0.1).any()
    np.testing.assert_array_equal(found["speculative"].expected, found["speculative"].sequential)


def test_greedy_block_is_ahead_in_the_first_block_and_loses_in_the_second(found):
    greedy, block = (found[name].expected.mean(axis=0) for name in ("greedy-block", "block"))
    assert greedy[0] > block[0] + 0.03 and greedy[1] < block[1] - 0.03


def test_texts_do_not_depend_on_the_other_rows_of_a_batch(decoder, found):
    prompts = np.random.default_rng(0).integers(0, runs.SIZE, [4000, 3])[700:710]
    alone = decoder.draw("block", prompts, np.arange(700, 710), 0.8, 5)
    np.testing.assert_array_equal(alone.counts, found["block"].counts[700:710])


def blocks_of(values):
    values = np.array(values, np.float64)
    return Blocks(np.round(values).astype(np.int32), values.astype(np.float32), np.ones_like(values, np.float32))


def test_summary_resamples_prompts_in_pairs():
    token = np.array([[1.0, 2], [3, 4], [2, 1], [5, 5]])  # two texts of two prompts
    found = {name: blocks_of(token) for name in METHODS} | {"block": blocks_of(2 * token)}
    result = block_efficiency.summarise(found, 2)
    assert result["speculative"]["sampled"]["estimate"] == pytest.approx(23 / 8)
    # Resampling gives one prompt twice, the other one twice, or both: prompt 0 has rows 0 and 2, prompt 1 rows 1 and 3.
    assert result["speculative"]["expected"]["low"] == pytest.approx(6 / 4)
    assert result["speculative"]["expected"]["high"] == pytest.approx(17 / 4)
    for key in ("sampled", "expected"):
        assert [result["gain"][key][bound] for bound in ("estimate", "low", "high")] == pytest.approx([100] * 3)
    assert result["gain"]["same_drafts"]["estimate"] == pytest.approx(100 * (46 / 8 - 1))
    ahead = {count: interval["estimate"] for count, interval in result["greedy_ahead"].items()}
    assert ahead == pytest.approx({"1": -11 / 4, "2": -23 / 4})
    assert result["by_block"]["block"] == pytest.approx([22 / 4, 24 / 4])
    assert result["speculative"]["standard_errors_apart"] == 0


def test_summary_counts_standard_errors_between_sampled_and_expected():
    found = {name: blocks_of([[1.0, 2], [3, 4]]) for name in METHODS}
    found["block"] = found["block"]._replace(expected=np.array([[0.5, 2.5], [2.5, 3.5]]))
    assert block_efficiency.summarise(found, 2)["block"]["standard_errors_apart"] == pytest.approx(1.0 / 1.0)


def test_batches_are_about_equal_and_small_enough():
    assert block_efficiency.batch_rows(8, 4096, 128) == 64
    assert block_efficiency.batch_rows(2, 4096, 128) == 128
    assert block_efficiency.batch_rows(8, 50_000_000, 5) == 1


def test_prompts_are_different_passages_without_padding():
    words = exported.vocabulary()
    prompts = block_efficiency.choose_prompts(SPEAKERS, words, 4, 100, 0)
    assert prompts.shape[1] == 4 and (prompts[:, 1:] != 0).all()
    document = words.document("\n".join(SPEAKERS[1][1]))
    assert tuple(document[3:7]) in {tuple(row) for row in prompts}
    assert len(block_efficiency.choose_prompts(SPEAKERS, words, 4, 2, 0)) == 2
    with pytest.raises(ValueError, match="no held-out text has 500 tokens"):
        block_efficiency.choose_prompts(SPEAKERS, words, 500, 2, 0)

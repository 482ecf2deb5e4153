"""Verifiers are lossless by enumeration, accept as many tokens as their closed forms say, and draw what they decide."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linprog

from models.decoding import numpy_ops
from models.decoding.enumeration import enumerate_output, joint_law
from models.decoding.greedy_block import greedy_block_rule
from models.decoding.lossless import check_lossless, draw_pair, sequential_acceptance
from models.decoding.prng import BlockWords, block_words
from models.decoding.verification import Stops, block_rule, residuals, sample_probabilities, token_rule, total, verify
from tests.oracles.backends import convert

LOSSLESS = {"token": token_rule, "block": block_rule}
RULES = {**LOSSLESS, "greedy block": greedy_block_rule}
PAIRS = [draw_pair(np.random.default_rng(5), number) for number in range(18)]


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LOSSLESS)
def test_output_has_exactly_the_law_of_the_target(name, dtype):
    found = check_lossless(LOSSLESS[name], dtype=dtype)
    assert found.passed, found
    assert found.models == 60
    assert found.accepted >= found.sequential - found.tolerance


def block_acceptance(target, drafter, size, length):
    """The expected tau by the paper's recursion: w_i = min(w_(i-1) M_b(x_i), M_s(x^i))."""

    def total(prefix, weight, drafted):
        if len(prefix) == length:
            return 0.0
        found = 0.0
        for token in range(size):
            joint = drafted * drafter[prefix][token]
            own = min(weight * target[prefix][token], joint)
            found += own + (total((*prefix, token), own, joint) if own else 0.0)
        return found

    return total((), 1.0, 1.0)


def greedy_acceptance(target, drafter, size, length):
    return sum(
        float(np.minimum(joint_law(target, size, i), joint_law(drafter, size, i)).sum()) for i in range(1, length + 1)
    )


EXPECTED = {"token": sequential_acceptance, "block": block_acceptance, "greedy block": greedy_acceptance}


@pytest.mark.parametrize("name", RULES)
def test_expected_number_of_accepted_tokens_is_its_closed_form(name):
    for pair in PAIRS:
        mean = enumerate_output(RULES[name], *pair.tables, pair.size, pair.length).accepted[0]
        assert mean == pytest.approx(EXPECTED[name](*pair.tables, pair.size, pair.length), abs=1e-12), pair.name


def best_acceptance(target, drafter, size, length):
    """The largest expected tau of any verifier, by linear programming over all of them."""
    drafts = list(itertools.product(range(size), repeat=length))
    drafted, expected = joint_law(drafter, size, length), joint_law(target, size, length + 1)
    columns, mass, law, value = [], [], [], []
    for row, draft in enumerate(drafts):
        for tau in range(length + 1):
            for token in range(size):
                prefix = (*draft[:tau], token)
                share = np.zeros(expected.shape)
                scale = joint_law_after(target, prefix, size, length)
                share[prefix] = scale
                columns.append((row, tau, token))
                mass.append(row)
                law.append(share.ravel())
                value.append(-tau)
    equalities = np.zeros((len(drafts), len(columns)))
    equalities[mass, np.arange(len(columns))] = 1
    found = linprog(
        value,
        A_eq=np.vstack([equalities, np.array(law).T]),
        b_eq=np.concatenate([[drafted[draft] for draft in drafts], expected.ravel()]),
        method="highs",
    )
    assert found.success
    return -found.fun


def joint_law_after(target, prefix, size, length):
    rest = length + 1 - len(prefix)
    law = np.ones([size] * rest)
    for tail in itertools.product(range(size), repeat=rest):
        for place in range(rest):
            law[tail] *= target[(*prefix, *tail[:place])][tail[place]]
    return law


def test_block_rule_accepts_as_many_tokens_as_any_verifier_can():
    generator = np.random.default_rng(8)
    for number in range(8):
        pair = draw_pair(generator, number)
        if pair.size ** (2 * pair.length) > 100:
            continue
        mean = enumerate_output(block_rule, *pair.tables, pair.size, pair.length).accepted[0]
        assert mean == pytest.approx(best_acceptance(*pair.tables, pair.size, pair.length), abs=1e-8), pair.name


@pytest.mark.parametrize(
    ("length", "by_token", "by_block", "greedily"),
    [(1, 6, 6, 6), (2, 10, 11, 12), (3, 38 / 3, 15, 50 / 3), (4, 130 / 9, 166 / 9, 64 / 3)],
)
def test_toy_models_accept_the_numbers_of_the_paper(length, by_token, by_block, greedily):
    """M_b = (1/3, 2/3) and M_s = (2/3, 1/3) after every prefix; tau in ninths (Sun et al. 2024)."""
    prefixes = [p for i in range(length + 1) for p in itertools.product(range(2), repeat=i)]
    target = {prefix: np.array([1, 2]) / 3 for prefix in prefixes}
    drafter = {prefix: np.array([2, 1]) / 3 for prefix in prefixes}
    for rule, expected in ((token_rule, by_token), (block_rule, by_block), (greedy_block_rule, greedily)):
        mean = enumerate_output(rule, target, drafter, 2, length).accepted[0]
        assert 9 * mean == pytest.approx(expected, abs=1e-12)


def planted(change):
    """Returns the block rule with a fault."""

    def rule(target, drafter, tokens, lengths):
        return change(block_rule(target, drafter, tokens, lengths), target, drafter, tokens, lengths)

    return rule


def token_residual(stops, *_):
    return Stops(stops.probability, tf.ones_like(stops.target_weight), stops.drafter_weight)


def accept_by_ratio(stops, target, drafter, tokens, lengths):
    """Stops at i with probability p_i instead of h_i."""
    last = stops.target_weight
    passed = tf.exp(tf.cumsum(tf.math.log1p(-tf.minimum(last[:, 1:], 1 - 1e-16)), axis=1, reverse=True))
    passed = tf.pad(passed, [[0, 0], [0, 1]], constant_values=1.0)
    stop = tf.concat([tf.ones_like(last[:, :1]), last[:, 1:]], axis=1)
    return Stops(stop * passed, stops.target_weight, stops.drafter_weight)


def reject_everything(stops, target, *_):
    first = tf.one_hot(tf.zeros_like(stops.probability[:, 0], tf.int32), stops.probability.shape[1], dtype=target.dtype)
    return Stops(first, tf.ones_like(stops.target_weight), tf.zeros_like(stops.drafter_weight))


@pytest.mark.parametrize("change", [token_residual, accept_by_ratio], ids=lambda change: change.__name__)
def test_check_finds_a_planted_fault(change):
    found = check_lossless(planted(change))
    assert not found.is_lossless and not found.passed
    assert "NOT lossless" in str(found)


def test_a_verifier_that_rejects_everything_is_lossless_and_does_not_pass():
    found = check_lossless(planted(reject_everything))
    assert found.is_lossless and not found.is_useful and not found.passed
    assert found.accepted == 0 < found.sequential
    assert str(found).startswith("lossless, accepts fewer tokens than token by token: largest error")


@pytest.mark.parametrize("name", RULES)
def test_ragged_rows_decide_as_shorter_drafts_do(name):
    """Tokens and drafter rows beyond a row's length are garbage, and change nothing."""
    generator = np.random.default_rng(3)
    batch, count, size = 6, 4, 5
    target = tf.constant(generator.dirichlet(np.ones(size), (batch, count + 1)))
    drafter = tf.constant(generator.dirichlet(np.ones(size), (batch, count)))
    tokens = generator.integers(0, size, (batch, count)).astype(np.int32)
    lengths = np.array([0, 1, 2, 3, 4, 2], np.int32)
    stops = RULES[name](target, drafter, tokens, lengths)
    tokens_after = residuals(stops, target, drafter).numpy()
    np.testing.assert_allclose(tf.reduce_sum(stops.probability, 1), np.ones(batch), atol=1e-12)
    for row, length in enumerate(lengths):
        assert not np.any(stops.probability[row, length + 1 :])
        if length == 0:
            continue
        alone = RULES[name](
            target[row : row + 1, : length + 1],
            drafter[row : row + 1, :length],
            tokens[row : row + 1, :length],
            [length],
        )
        np.testing.assert_allclose(stops.probability[row, : length + 1], alone.probability[0], atol=1e-12)
        own = residuals(alone, target[row : row + 1, : length + 1], drafter[row : row + 1, :length])
        np.testing.assert_allclose(tokens_after[row, : length + 1], own[0], atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_token_that_the_drafter_could_not_have_drawn_ends_the_draft(name):
    target = tf.constant(np.full((1, 4, 3), 1 / 3))
    drafter = np.full((1, 3, 3), 1 / 3)
    drafter[0, 1] = [0.5, 0.5, 0]
    stops = RULES[name](target, tf.constant(drafter), tf.constant([[0, 2, 1]]), tf.constant([3]))
    np.testing.assert_allclose(stops.probability, [[0, 1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_draws_have_the_law_of_the_rule(name):
    """Pearson's test of (tau, Y) over 40,000 draws per draft; a true rule fails with probability 1e-4 (fixed seeds)."""
    from scipy.stats import chi2

    generator = np.random.default_rng(7)
    size, count, draws = 4, 3, 40_000
    target = generator.dirichlet(np.ones(size), (1, count + 1)).astype(np.float32)
    drafter = generator.dirichlet(np.ones(size), (1, count)).astype(np.float32)
    tokens = np.array([[1, 0, 2]], np.int32)
    stops = RULES[name](tf.constant(target), tf.constant(drafter), tf.constant(tokens), tf.constant([count]))
    law = stops.probability.numpy()[0, :, np.newaxis] * residuals(stops, target, drafter).numpy()[0]
    words = block_words(numpy_ops.seed_words(11), tf.range(draws), tf.zeros([draws], tf.int32), count)

    def repeat(x):
        return tf.repeat(tf.constant(x), draws, axis=0)

    found = verify(RULES[name], repeat(target), repeat(drafter), repeat(tokens), tf.fill([draws], count), words)
    counts = np.zeros_like(law)
    np.add.at(counts, (found.accepted.numpy(), found.token.numpy()), 1)
    likely = law * draws > 5
    assert counts[~likely].sum() <= 10 * max(1, law[~likely].sum() * draws)
    statistic = np.sum((counts[likely] - draws * law[likely]) ** 2 / (draws * law[likely]))
    assert statistic < chi2.ppf(1 - 1e-4, likely.sum())


def words_of(*numbers):
    """Returns pairs of random words with which draws compare the given numbers in [0, 1)."""
    numerators = (np.array(numbers, np.float64) * 2.0**31).astype(np.int64)
    return tf.constant((numerators << 1).astype(np.uint32).view(np.int32)), tf.zeros([len(numbers)], tf.int32)


def test_residual_weights_far_below_the_largest_keep_their_probability():
    """The second token has a share of 2**-30: numbers from 1 - 2**-30 on draw it, those below do not."""
    weights = tf.constant([[1.0, 2.0**-30]] * 2)
    found = sample_probabilities(weights, words_of(1 - 3 * 2.0**-31, 1 - 2.0**-31))
    np.testing.assert_array_equal(found, [0, 1])


def test_equal_residual_weights_of_the_largest_vocabulary_do_not_overflow():
    numbers = [0.0, 0.25, 0.5, 0.75, 1 - 2.0**-31]
    found = sample_probabilities(tf.ones([len(numbers), 1 << 18]), words_of(*numbers))
    np.testing.assert_array_equal(found, [int(number * (1 << 18)) for number in numbers])


def test_sums_over_the_largest_vocabulary_keep_their_digits_where_a_runtime_adds_term_after_term():
    """TFLite does: in one step it errs by 2e-5 here."""
    terms = np.full([1, 1, 1 << 18], 1 / 3, np.float32)
    summed = convert(lambda x: {"sum": total(x)}, {"x": tf.TensorSpec(terms.shape, tf.float32, "x")})(x=terms)["sum"]
    assert summed[0, 0] == pytest.approx(terms.sum(dtype=np.float64), rel=2e-6)


@pytest.mark.parametrize("name", RULES)
def test_bonus_words_draw_the_token_after_a_whole_draft_and_residual_words_that_after_a_rejection(name):
    """The first token of the first row is certainly rejected, and that of the second certainly accepted."""
    target = tf.constant([[[0, 0.5, 0, 0.5]] * 2, [[1, 0, 0, 0], [0.25] * 4]], tf.float32)
    drafter = tf.constant([[[1, 0, 0, 0]]] * 2, tf.float32)
    words = BlockWords(((), ()), tf.zeros([2], tf.int32), words_of(0.1, 0.1), words_of(0.9, 0.9))
    found = verify(RULES[name], target, drafter, tf.zeros([2, 1], tf.int32), tf.ones([2], tf.int32), words)
    np.testing.assert_array_equal(found.accepted, [0, 1])
    np.testing.assert_array_equal(found.token, [1, 3])


@pytest.mark.slow
def test_graph_and_xla_draw_the_tokens_of_eager_mode():
    generator = np.random.default_rng(9)
    batch, count, size = 64, 3, 9
    target = tf.constant(generator.dirichlet(np.ones(size), (batch, count + 1)), tf.float32)
    drafter = tf.constant(generator.dirichlet(np.ones(size), (batch, count)), tf.float32)
    tokens = tf.constant(generator.integers(0, size, (batch, count)), tf.int32)
    words = block_words([3, 4], tf.range(batch), tf.zeros([batch], tf.int32), count)
    for rule in RULES.values():

        def run(target, drafter, tokens, words, rule=rule):
            return verify(rule, target, drafter, tokens, tf.fill([batch], count), words)

        eager = run(target, drafter, tokens, words)
        for compiled in (False, True):
            found = tf.function(run, jit_compile=compiled, autograph=False)(target, drafter, tokens, words)
            assert np.mean(np.equal(found.accepted, eager.accepted)) == 1
            assert np.mean(np.equal(found.token, eager.token)) == 1

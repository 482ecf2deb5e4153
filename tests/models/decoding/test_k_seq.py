"""K-SEQ is lossless by enumeration of all drafts, accepts as often as its closed form says, and runs in TFLite."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import k_seq
from models.decoding.transport import k_seq_acceptance
from tests.oracles.backends import convert

COUNTS = (1, 2, 3, 4)
MOST = max(COUNTS)


def draw_pairs(size, number):
    """Draws pairs `[number, size]`: random, with zeros, equal, disjoint."""
    generator = np.random.default_rng(size)
    p, q = (generator.gamma(generator.choice([0.3, 1, 3], (number, 1)), size=(number, size)) + 1e-12 for _ in "pq")
    zeros = np.arange(number)[:, np.newaxis] % 5 == 1
    p, q = (np.where(zeros & (np.arange(size) == generator.integers(size, size=(number, 1))), 0, x) for x in (p, q))
    q[2::10] = p[2::10]
    p[3::10, 0], q[3::10, 1:] = 0, 0
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


PAIRS = {size: draw_pairs(size, number) for size, number in ((2, 12), (3, 12), (4, 6))}


def enumerate_drafts(size):
    """Returns all tuples of 1 to 4 drafts at the last places `[n, 4]`, and which places are alive."""
    tuples = [((0,) * (MOST - n) + drafts, n) for n in COUNTS for drafts in itertools.product(range(size), repeat=n)]
    drafts, counts = (np.array(part) for part in zip(*tuples, strict=True))
    return drafts, np.arange(MOST) >= MOST - counts[:, np.newaxis]


def output(p, q, dtype=np.float64):
    """Returns, for each pair and number of drafts, the distribution of the emitted token and the acceptance.

    Float64 `[pairs, 4, V]` and `[pairs, 4]`. All tuples of drafts are enumerated.
    """
    pairs, size = p.shape
    drafts, alive = enumerate_drafts(size)
    drafter, target = (tf.constant(np.repeat(x, len(drafts), axis=0), dtype) for x in (p, q))
    repeated = [np.tile(x, (pairs, 1)) for x in (drafts, alive)]
    choice = k_seq.choose(drafter, target, tf.constant(repeated[0], tf.int32), tf.constant(repeated[1]))
    accept, residual = (x.numpy().astype(np.float64) for x in choice)
    assert not accept[~repeated[1]].any()
    passed = np.cumprod(np.pad(1 - accept, [(0, 0), (1, 0)], constant_values=1), axis=1)
    emitted = np.sum(np.eye(size)[repeated[0]] * (passed[:, :-1] * accept)[..., np.newaxis], axis=1)
    emitted += passed[:, -1:] * residual / residual.sum(1, keepdims=True)
    weights = np.prod(np.where(alive, p[:, drafts], 1), axis=2)
    of_count = np.eye(MOST)[alive.sum(1) - 1]
    law = np.einsum("pt,tn,ptv->pnv", weights, of_count, emitted.reshape(pairs, -1, size))
    return law, np.einsum("pt,tn,pt->pn", weights, of_count, 1 - passed[:, -1].reshape(pairs, -1))


def error_of_three_drafts():
    p, q = (x[:6] for x in PAIRS[3])
    return np.abs(output(p, q)[0][:, 2] - q).max()


@pytest.mark.numerical
@pytest.mark.parametrize(("dtype", "tolerance", "missed"), [(np.float64, 1e-12, 1e-9), (np.float32, 1e-6, 5e-6)])
@pytest.mark.parametrize("size", PAIRS)
def test_output_has_the_law_of_the_target_and_accepts_as_often_as_the_root_says(size, dtype, tolerance, missed):
    """On 120 pairs and numbers of drafts, in all."""
    p, q = PAIRS[size]
    law, accepted = output(p, q, dtype)
    np.testing.assert_allclose(law, np.repeat(q[:, np.newaxis], MOST, axis=1), rtol=0, atol=tolerance)
    expected = [[k_seq_acceptance(*pair, count) for count in COUNTS] for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(accepted, expected, rtol=0, atol=missed)


def with_rho(change):
    """Returns a solver that changes ρ, and computes the rest for it."""
    right = k_seq.solve

    def solve(drafter, target, count, most):
        rho = change(right(drafter, target, count, most).rho, count)
        beta = tf.reduce_sum(tf.minimum(drafter, target / rho[:, tf.newaxis]), axis=1)
        terms = tf.cast(tf.range(most) < count[:, tf.newaxis], beta.dtype)
        g = tf.reduce_sum(terms * (1 - beta)[:, tf.newaxis] ** tf.range(most, dtype=beta.dtype), axis=1)
        return k_seq.Root(rho, beta, g)

    return solve


def below_the_root(rho, count):
    return tf.maximum(0.98 * rho, 1.0)


def lower_end_of_a_coarse_bracket(rho, count):
    """After four halvings of [1, K]."""
    width = (tf.cast(count, rho.dtype) - 1) / 16
    return 1 + width * tf.floor(tf.math.divide_no_nan(rho - 1, width))


@pytest.mark.parametrize("change", [below_the_root, lower_end_of_a_coarse_bracket], ids=lambda f: f.__name__)
def test_enumeration_finds_a_rho_below_the_root(monkeypatch, change):
    monkeypatch.setattr(k_seq, "solve", with_rho(lambda rho, count: rho))
    assert error_of_three_drafts() < 1e-12
    monkeypatch.undo()
    monkeypatch.setattr(k_seq, "solve", with_rho(change))
    assert error_of_three_drafts() > 1e-3


def test_enumeration_finds_a_root_for_another_number_of_drafts(monkeypatch):
    right = k_seq.solve
    monkeypatch.setattr(k_seq, "solve", lambda p, q, count, most: right(p, q, tf.fill(tf.shape(count), most), most))
    assert error_of_three_drafts() > 1e-3


def solved(p, q, *counts, dtype=tf.float64):
    drafter, target = (tf.constant(np.tile(x, (len(counts), 1)), dtype) for x in (p, q))
    return [x.numpy() for x in k_seq.solve(drafter, target, tf.constant(counts), max(counts))]


def test_worked_examples_have_their_known_roots():
    rho, beta, g = solved([0.5, 0.3, 0.2], [0.1, 0.3, 0.6], 1, 3)
    assert rho == pytest.approx([1, 1.948368], abs=5e-7)
    assert beta == pytest.approx([0.6, 0.405300], abs=5e-7)
    assert beta * g == pytest.approx([0.6, 0.789674], abs=5e-7)
    rho, beta, g = solved([0.25] * 4, [0.5, 0.5, 0, 0], 2)
    assert (rho[0], beta[0] * g[0]) == pytest.approx((1.5, 0.75), abs=1e-12)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_equal_distributions_are_surely_accepted_and_disjoint_ones_never(dtype):
    p, other = np.array([0.7, 0.1, 0.2, 0, 0]), np.array([0, 0, 0, 0.4, 0.6])
    rho, beta, g = solved(p, p, 1, 4, dtype=dtype)
    assert [*rho, *beta, *g] == [1] * 6
    _, beta, g = solved(p, other, 1, 4, dtype=dtype)
    assert [*beta, *g] == [0, 0, 1, 4]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_g_is_never_above_rho_for_many_tokens(dtype):
    """Where it is, the residual loses mass, and the output's distribution is not the target's."""
    generator = np.random.default_rng(7)
    logits = 3 * generator.normal(size=(60, 1000))
    p, q = (np.exp(logits + generator.normal(size=logits.shape)) for _ in "pq")
    drafter, target = (tf.constant(x / x.sum(1, keepdims=True), dtype) for x in (p, q))
    rho, _, g = (x.numpy() for x in k_seq.solve(drafter, target, tf.constant([2, 3, 4, 8] * 15), 8))
    assert np.all(g <= rho) and np.all(rho > 1)


def test_solver_ends_at_distributions_that_are_not_finite():
    rho, _, g = solved([np.nan, 0.5], [0.5, 0.5], 3)
    assert rho[0] == 1 and np.isnan(g[0])


def run(drafter, target, drafts, alive):
    return k_seq.choose(drafter, target, drafts, alive)._asdict()


def draw_arguments():
    """Draws four rows of a large vocabulary; in the last one no draft is alive."""
    generator = np.random.default_rng(6)
    logits = 3 * generator.normal(size=(4, 50_257))
    p, q = (np.exp(logits + generator.normal(size=logits.shape)) for _ in "pq")
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    drafts = np.array([generator.choice(len(row), 4, p=row) for row in p], np.int32)
    alive = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    return {"drafter": p.astype(np.float32), "target": q.astype(np.float32), "drafts": drafts, "alive": alive}


def assert_alike(found, expected):
    """Each backend ends a little above the root, by 1e-5 of it at most."""
    np.testing.assert_allclose(found["accept"], expected["accept"], rtol=2e-5)
    np.testing.assert_allclose(found["residual"], expected["residual"], rtol=0, atol=1e-6)


@pytest.mark.numerical
def test_tflite_decides_as_eager_mode_about_a_large_vocabulary():
    arguments = draw_arguments()
    specs = {name: tf.TensorSpec(x.shape, x.dtype, name) for name, x in arguments.items()}
    found, eager = convert(run, specs)(**arguments), run(**arguments)
    assert_alike(found, eager)
    assert not found["accept"][~arguments["alive"]].any()
    pairs = zip(arguments["drafter"], arguments["target"], (4, 2, 1, 1), strict=True)
    expected = [k_seq_acceptance(p, q, count) for p, q, count in pairs]
    np.testing.assert_allclose(1 - found["residual"].sum(1, dtype=np.float64), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_graph_and_xla_decide_as_eager_mode(compiled):
    arguments = {name: tf.constant(x) for name, x in draw_arguments().items()}
    assert_alike(tf.function(run, jit_compile=compiled, autograph=False)(**arguments), run(**arguments))

"""The transformer equals its oracle with every option, refuses what does not fit, and is scale-invariant if asked."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.token_tree import TokenTree
from models.transformer import layers
from models.transformer.decoder import TransformerLanguageModel
from tests.models import language_models
from tests.models.language_models import LanguageModelTests, make_tokens, make_weights, start
from tests.models.tree_tests import TREE, TreeTests
from tests.oracles import transformer as oracle
from tests.tolerance import FUNCTION

pytestmark = pytest.mark.numerical

V, E = language_models.VOCABULARY, 16
SCALE_INVARIANT = {"attention": "relu", "norm_epsilon": 0.0, "degree_two_embedding": True}


def make_model(**options):
    sizes = {"embedding": E, "blocks": 2, "heads": 4, "feed_forward": 24, "context": language_models.ROOM}
    return TransformerLanguageModel(V, **{**sizes, **options})


# Together they hold every value of every option.
MODELS = {
    "plain": make_model(),
    "scale-invariant": make_model(positions="learned", **SCALE_INVARIANT),
    "llama": make_model(normalization="rms", activation="swiglu", key_value_heads=2, attention_bias=True, tied=False),
    "mixed": make_model(normalization="rms", attention="relu", key_value_heads=1, rotary_base=100.0, activation="relu"),
}


@pytest.fixture(params=list(MODELS), scope="class")
def model(request):
    return MODELS[request.param]


class TestTransformer(LanguageModelTests, TreeTests):
    def oracle_logits(self, model, weights, tokens):
        return oracle.logits(model, weights, tokens)

    def operations(self, model):
        normalize = 2 * E + FUNCTION
        attention = E + 2 + (E // model.heads) + 2 * FUNCTION + language_models.ROOM + E
        feed_forward = E + FUNCTION + model.feed_forward
        return model.blocks * (2 * normalize + attention + feed_forward + 2) + normalize + E

    def test_a_node_that_sees_its_siblings_is_caught(self, model, expected, monkeypatch):
        def all_before(length, positions, tree, nodes):
            return tf.range(positions) <= length[:, tf.newaxis, tf.newaxis] + tf.range(len(tree))[:, tf.newaxis]

        monkeypatch.setattr("models.transformer.decoder.visible_in_tree", all_before)
        with pytest.raises(AssertionError):
            self.check_logits(model, expected)

    def test_positions_by_number_of_the_node_are_caught(self, model, expected, monkeypatch):
        monkeypatch.setattr(TokenTree, "depths", property(lambda tree: np.arange(len(tree), dtype=np.int32)))
        with pytest.raises(AssertionError):
            self.check_logits(model, expected)

    def test_a_path_whose_entries_are_not_moved_is_caught(self, model, expected, monkeypatch):
        def lengthen(trail, kept, tree):
            return trail._replace(length=trail.length + np.array([0, *tree.depths + 1], np.int32)[kept])

        monkeypatch.setattr("models.transformer.decoder.keep_path", lengthen)
        with pytest.raises(AssertionError):
            self.check_rewound(model, expected)


def test_rewind_to_a_node_of_a_tree_that_fills_the_cache_keeps_its_path():
    model = make_model().fit(len(TREE) + 2)
    weights, prompt, tokens = make_weights(model), make_tokens(2, 2), make_tokens(2, len(TREE), seed=2)
    _, state = model.prefill(weights, prompt, np.array([2, 1], np.int32))
    _, trail = model.extend(weights, tokens, state, TREE)
    logits, _ = model.extend(weights, prompt, model.rewind(trail, np.array([7, 6], np.int32), TREE))
    for row, path in enumerate([(0, 1, 4, 6), (0, 2, 5)]):
        text = np.array([*prompt[row, : 2 - row], *tokens[row, path], *prompt[row]], np.int32)
        np.testing.assert_allclose(logits[row], oracle.logits(model, weights, text)[-2:], rtol=1e-10, atol=1e-10)
    _, state = model.prefill(weights, make_tokens(2, 3), np.array([3, 1], np.int32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="7 more tokens do not fit in the cache of 9"):
        model.extend(weights, tokens, state, TREE)


def test_a_level_that_begins_in_the_cache_and_ends_beyond_it_is_an_error_or_gives_nan(monkeypatch):
    """Level 2 of the tree holds nodes 3, 4 and 5, so that the first row, of two tokens, would need eight places."""
    model, level, read = make_model().fit(7), TREE.levels[2], make_tokens(2, len(TREE), seed=2)
    weights = make_weights(model)
    _, trail = model.prefill(weights, make_tokens(2, 2), np.array([2, 1], np.int32))
    for before in TREE.levels[:2]:
        _, trail = model.extend(weights, read[:, before.start : before.stop], trail, TREE, before)
    tokens = read[:, level.start : level.stop]
    with pytest.raises(tf.errors.InvalidArgumentError, match="6 more tokens do not fit in the cache of 7"):
        model.extend(weights, tokens, trail, TREE, level)
    with pytest.raises(ValueError, match="6 tokens do not fit in the model's cache of 5"):
        model.fit(5).extend(weights, tokens, start(model.fit(5), 2), TREE, level)
    monkeypatch.setattr(tf.debugging, "Assert", lambda *_: None)  # as XLA and TFLite, which cannot raise
    logits = model.extend(weights, tokens, trail, TREE, level)[0].numpy()
    assert np.isnan(logits[0]).all()
    for node, found in zip(level, logits[1], strict=True):
        path = np.flatnonzero(TREE.ancestors[node])
        text = np.array([make_tokens(2, 2)[1, 0], *read[1, path]], np.int32)
        np.testing.assert_allclose(found, oracle.logits(model, weights, text)[-1], rtol=1e-10, atol=1e-10)


def test_rewind_of_a_row_that_did_not_fit_reads_no_place_beyond_the_cache():
    """Such a row has no text any more, but the other rows of its batch have."""
    model = make_model().fit(len(TREE) + 1)
    state = start(model, 2)
    trail = state._replace(
        keys=tuple(part + 1 for part in state.keys), length=tf.constant([1, model.positions_cached - 2])
    )
    kept = model.rewind(trail, np.array([7, 7], np.int32), TREE)
    assert kept.length[0] == 5
    assert all(np.all(np.equal(part, 1)) for part in kept.keys)


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_that_would_overflow_is_an_error_before_the_call(name):
    model = MODELS[name].fit(6)
    weights, state = make_weights(model), start(model, 2)
    _, trail = model.extend(weights, make_tokens(2, 4), state)
    state = model.rewind(trail, np.array([4, 3], np.int32))
    model.extend(weights, make_tokens(2, 2), state)
    for function in (model.extend, tf.function(model.extend, autograph=False)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="3 more tokens do not fit in the cache of 6"):
            function(weights, make_tokens(2, 3), state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="do not fit"):
        model.prefill(weights, make_tokens(2, 3), np.array([1, 1], np.int32), state)
    with pytest.raises(ValueError, match="7 tokens do not fit in the model's cache of 6"):
        model.extend(weights, make_tokens(2, 7), start(model, 2))
    with pytest.raises(ValueError, match="7 tokens do not fit in the model's cache of 6"):
        model.prefill(weights, make_tokens(2, 7), np.array([1, 1], np.int32))


def test_where_nothing_can_be_raised_a_row_that_overflows_has_nan_logits_and_others_are_right():
    model = make_model().fit(6)
    weights = {name: tf.constant(weight) for name, weight in make_weights(model).items()}
    _, trail = model.extend(weights, make_tokens(2, 4), start(model, 2))
    state = model.rewind(trail, np.array([4, 2], np.int32))
    more = make_tokens(2, 3, seed=2)
    logits, _ = tf.function(model.extend, jit_compile=True, autograph=False)(weights, tf.constant(more), state)
    assert np.isnan(logits[0]).all()
    text = np.array([*make_tokens(2, 4)[1, :2], *more[1]], np.int32)
    expected = oracle.logits(model, {n: w.numpy() for n, w in weights.items()}, text)[2:]
    np.testing.assert_allclose(logits[1], expected, rtol=1e-10, atol=1e-10)


def test_rows_longer_than_the_context_cannot_be_trained():
    model = make_model()
    weights = make_weights(model)
    for function in (model.token_losses, model.loss_sum):
        with pytest.raises(ValueError, match="25 tokens do not fit in the model's context of 24"):
            function(weights, make_tokens(1, 26))


def test_masked_positions_of_the_cache_never_reach_a_logit():
    """Entries from the length on are replaced by NaN-free garbage, which must change nothing."""
    model = make_model()
    weights = make_weights(model)
    _, state = model.prefill(weights, make_tokens(2, 5), np.array([5, 3], np.int32))
    unused = tf.range(language_models.ROOM) >= state.length[:, tf.newaxis]
    dirty = state._replace(
        keys=tuple(tf.where(unused[:, tf.newaxis, tf.newaxis], 1e6, keys) for keys in state.keys),
        values=tuple(tf.where(unused[:, tf.newaxis, :, tf.newaxis], 1e6, values) for values in state.values),
    )
    probe = make_tokens(2, 3, seed=4)
    np.testing.assert_array_equal(model.extend(weights, probe, state)[0], model.extend(weights, probe, dirty)[0])


def scaled(weights, factor, names=None):
    return {n: w * factor if names is None or any(part in n for part in names) else w for n, w in weights.items()}


def hidden(model, weights, tokens):
    return model.extend_with_hidden(weights, tokens, start(model, len(tokens)))[1].numpy()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_hidden_states_of_the_scale_invariant_model_do_not_depend_on_the_scale_of_the_weights(positions):
    model, tokens = make_model(positions=positions, **SCALE_INVARIANT), make_tokens(2, 8)
    weights = make_weights(model)
    expected = hidden(model, weights, tokens)
    for factor in (1e-3, 3.0, 7.0):
        np.testing.assert_allclose(hidden(model, scaled(weights, factor), tokens), expected, rtol=0, atol=1e-12)
    assert model.is_scale_invariant


@pytest.mark.parametrize(
    "change",
    [{"attention": "softmax"}, {"activation": "swiglu"}, {"normalization": "rms"}, {"degree_two_embedding": False}],
    ids=str,
)
def test_models_with_one_other_option_are_not_scale_invariant_and_do_not_say_so(change):
    model, tokens = dataclasses.replace(make_model(**SCALE_INVARIANT), **change), make_tokens(2, 8)
    weights = make_weights(model)
    before, after = (hidden(model, w, tokens) for w in (weights, scaled(weights, 3.0)))
    assert np.max(np.abs(before - after)) > 0.1
    assert not model.is_scale_invariant


def test_parts_have_the_homogeneity_degrees_of_the_scale_invariant_recipe():
    """Li et al. 2022, table 1: (degree in the inputs; degree in the inputs -> degree in the weights)."""
    generator = np.random.default_rng(4)
    inputs, c = generator.normal(size=(2, 5, E)), 3.0
    weights = {name: tf.constant(generator.normal(size=(E, E))) for name in ("inner", "outer")}
    larger = {name: c * weight for name, weight in weights.items()}

    def feed_forward(weights):
        normalized = layers.normalize(tf.constant(inputs), "layer", 0.0)
        return layers.matmul(weights, "outer", layers.activate(layers.matmul(weights, "inner", normalized), "relu"))

    def attention(scale):
        q, k, v = (scale * generator.normal(size=(2, 5, 4, 4)) for generator in map(np.random.default_rng, (1, 2, 3)))
        causal = np.tril(np.ones((5, 5), bool))
        keys, values = np.transpose(k, [0, 2, 3, 1]), np.transpose(v, [0, 2, 1, 3])
        return layers.attend(tf.constant(q), tf.constant(keys), tf.constant(values), tf.constant(causal), "relu")

    def close(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)

    close(layers.normalize(tf.constant(c * inputs), "layer", 0.0), layers.normalize(tf.constant(inputs), "layer", 0.0))
    close(
        layers.matmul(larger, "inner", tf.constant(c * inputs)),
        c**2 * layers.matmul(weights, "inner", tf.constant(inputs)),
    )
    close(feed_forward(larger), c**2 * feed_forward(weights))
    close(attention(c), c * attention(1.0))  # 0 in queries and keys, 1 in values
    model = make_model(positions="learned", **SCALE_INVARIANT)
    values = make_weights(model)
    block = [n for n in values if n.startswith("block_00")]

    def outputs(scale):
        """The block's output: its input, of degree 2, plus what the block adds."""
        scaled_weights = {n: tf.constant(scale * w) for n, w in values.items() if n in block}
        attend = model._causal(5, tf.float64)
        one = dataclasses.replace(model, blocks=1)
        return one._blocks(
            {**scaled_weights, "embedding_projection": tf.constant(np.eye(E))},
            tf.constant(scale**2 * inputs),
            lambda _, projected: attend(projected)[0],
        )

    close(outputs(c), c**2 * outputs(1.0))


def test_positions_after_a_rows_last_target_are_not_computed(monkeypatch):
    """Only attention sees them: every matrix product has a row per position up to each row's last target."""
    model, rows = make_model(), []
    weights = {name: tf.constant(weight) for name, weight in make_weights(model).items()}
    tokens = np.ones((3, 9), np.int32)
    tokens[0, 4:] = tokens[1, 1:] = 0
    matmul = layers.matmul

    def counting(weights, name, inputs):
        rows.append(int(np.prod(inputs.shape[:-1])))
        return matmul(weights, name, inputs)

    monkeypatch.setattr("models.transformer.decoder.matmul", counting)
    model.loss_sum(weights, tokens)
    assert set(rows) == {3 + 0 + 8}


def test_gradient_of_an_invariant_loss_is_orthogonal_to_the_weights_and_inverse_to_their_scale():
    """Li et al. 2022, theorem 2.2: <grad, weights> = 0, and grad(c · weights) = grad(weights) / c."""
    model, tokens = make_model(**SCALE_INVARIANT), make_tokens(2, 9)
    target = np.random.default_rng(5).normal(size=(2, 8, E))

    def gradient(model, weights):
        _, gradients = language_models.gradients_of(
            lambda w: tf.reduce_sum(model.hidden_states(w, tokens)[0] * target), weights
        )
        return gradients

    weights = make_weights(model)
    once, thrice = gradient(model, weights), gradient(model, scaled(weights, 3.0))
    size = sum(np.sum(np.square(g)) for g in once.values()) ** 0.5
    assert abs(sum(np.sum(g * weights[n]) for n, g in once.items())) < 1e-12 * size
    for name in weights:
        np.testing.assert_allclose(3 * thrice[name], once[name], rtol=1e-9, atol=1e-12 * size)
    softmax = dataclasses.replace(model, attention="softmax")
    assert abs(sum(np.sum(g * weights[n]) for n, g in gradient(softmax, weights).items())) > 1e-3


def test_the_loss_of_the_scale_invariant_model_is_invariant_but_for_the_output_layer():
    model, tokens = make_model(tied=False, **SCALE_INVARIANT), make_tokens(2, 8)
    weights = make_weights(model)
    others = {n: w if n == "output" else 5 * w for n, w in weights.items()}
    np.testing.assert_allclose(model.token_losses(others, tokens), model.token_losses(weights, tokens), atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks: 0 is not a positive integer"),
        ({"blocks": 100}, "blocks: 100 is more than 99"),
        ({"heads": 3}, "heads: 3 does not divide the embedding size 16"),
        ({"heads": 16}, "heads: with 16 a head has 1 entries; rotary needs an even number"),
        ({"key_value_heads": 3}, "key_value_heads: 3 does not divide the 4 heads"),
        ({"key_value_heads": True}, "key_value_heads: True is not a positive integer"),
        ({"cache_length": 25}, "cache_length: 25 is more than the model's context 24"),
        ({"attention": "linear"}, "attention: 'linear' is not one of 'softmax', 'relu'"),
        ({"normalization": None}, "normalization: None is not one of 'layer', 'rms'"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon: nan is not a number >= 0"),
        ({"rotary_base": 0}, "rotary_base: 0 is not a number > 0"),
        ({"tied": 1}, "tied: 1 is not true or false"),
        ({"context": 2.0}, "context: 2.0 is not a positive integer"),
    ],
)
def test_model_refuses_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_model(**options)
    assert "\n" not in str(error.value)


def test_fit_refuses_more_than_the_context():
    with pytest.raises(ValueError, match="cache_length: 25 is more than the model's context 24"):
        make_model().fit(25)


def test_init_has_the_stated_scales():
    model = TransformerLanguageModel(500, 64, 2, 4, 96, context=300, positions="learned", normalization="rms")
    weights = model.init(0)
    deviations = {
        "embedding": 64**-0.5,
        "positions": 64**-0.5,
        "block_01.query_key_value": 64**-0.5,
        "block_01.inner": 64**-0.5,
        "block_01.attention_output": 64**-0.5 / 2,
        "block_01.outer": 96**-0.5 / 2,
    }
    # The standard deviation of n normal draws has relative error 1/sqrt(2n). The bound is 5 sigma, so that the test
    # fails by chance with probability below 1e-5.
    for name, deviation in deviations.items():
        assert abs(weights[name].std() / deviation - 1) < 5 / np.sqrt(2 * weights[name].size)
    for name in ("block_00.attention_norm", "block_01.feed_forward_norm", "final_norm"):
        np.testing.assert_array_equal(weights[name], np.ones(64, np.float32))


@pytest.mark.parametrize("options", [{}, SCALE_INVARIANT], ids=["plain", "scale-invariant"])
def test_plain_sgd_learns_from_the_weights_of_init(options):
    """Each row counts up from a random token, so that all other tokens can be predicted with certainty."""
    model = TransformerLanguageModel(16, 16, 2, 2, 64, context=10, **options)
    rng = np.random.default_rng(0)
    data = ((rng.integers(0, 16, (200, 16, 1)) + np.arange(11)) % 16).astype(np.int32)

    @tf.function(autograph=False)
    def update(weights, tokens):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(model.token_losses(weights, tokens))
        gradient = tape.gradient(loss, weights)
        return {n: w - 0.5 * gradient[n] for n, w in weights.items()}, loss

    weights = {n: tf.constant(w) for n, w in model.init(0).items()}
    losses = []
    for tokens in data:
        weights, loss = update(weights, tf.constant(tokens))
        losses.append(float(loss))
    assert losses[0] > 2.0
    assert losses[-1] < 0.5

"""Tests that every language model must pass: its losses, states and gradients are those of a slow oracle."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.presets import from_config
from tests.tolerance import condition, rounding

VOCABULARY = 11
ROOM = 24
"""Tokens that fit in a row of every model under test."""


def make_weights(model, seed=0, dtype=np.float64):
    """Draws all weights at random, because biases of zero and scales of one could hide a fault."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in model.shapes().items()}


def make_tokens(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


def start(model, batch, dtype=np.float64):
    """Returns the initial state in another precision."""
    return tf.nest.map_structure(
        lambda part: tf.cast(part, dtype) if part.dtype.is_floating else part, model.initial_state(batch)
    )


def row(state, index):
    return tf.nest.map_structure(lambda part: part[index : index + 1], state)


def gradients_of(function, weights):
    tensors = {name: tf.convert_to_tensor(weight) for name, weight in weights.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = function(tensors)
    return total, {n: tf.convert_to_tensor(g) for n, g in tape.gradient(total, tensors).items()}


def largest_difference(one, other):
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other))))


class LanguageModelTests:
    """Holds the tests; a subclass gives the fixture `model` (scope "class"), `oracle_logits` and `operations`."""

    def oracle_logits(self, model, weights, tokens):
        """Returns the logits after each token of one row, in NumPy float64: tokens [T] -> [T, V]."""
        raise NotImplementedError

    def operations(self, model):
        """Returns the operations on the way to one logit, as `tests.tolerance.rounding` takes them."""
        raise NotImplementedError

    def test_token_losses_equal_the_oracle(self, model):
        weights, tokens = make_weights(model), make_tokens(3, 8)
        losses = model.token_losses(weights, tokens)
        assert losses.shape == (3, 7)
        for index in range(3):
            logits = self.oracle_logits(model, weights, tokens[index, :-1])
            expected = -tf.nn.log_softmax(logits).numpy()[np.arange(7), tokens[index, 1:]]
            np.testing.assert_allclose(losses[index], expected, rtol=1e-12, atol=1e-12)

    def test_gradient_equals_central_differences_of_the_oracle(self, model):
        weights, tokens = make_weights(model), make_tokens(2, 6)
        _, gradient = gradients_of(lambda tensors: tf.reduce_sum(model.token_losses(tensors, tokens)), weights)
        rng, step = np.random.default_rng(2), 1e-6

        def total(changed):
            losses = 0.0
            for tokens_of_row in tokens:
                logits = self.oracle_logits(model, changed, tokens_of_row[:-1])
                losses -= tf.nn.log_softmax(logits).numpy()[np.arange(5), tokens_of_row[1:]].sum()
            return losses

        for name, weight in weights.items():
            direction = rng.normal(size=weight.shape)
            ahead, behind = ({**weights, name: weight + sign * step * direction} for sign in (1, -1))
            expected = (total(ahead) - total(behind)) / (2 * step)
            np.testing.assert_allclose(np.sum(gradient[name] * direction), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("clients", [0, 3])
    def test_loss_sum_and_correct_count_cover_only_targets_that_are_not_padding(self, model, clients):
        """The data has short rows, padding inside rows and, with a client axis (clients > 0), rows of padding."""
        rng = np.random.default_rng(3)
        lead = [clients] * (clients > 0)
        weights = {n: rng.normal(size=(*lead, *s)) for n, s in model.shapes().items()}
        tokens = rng.integers(1, VOCABULARY, (*lead, 4, 7)).astype(np.int32)
        tokens[rng.random(tokens.shape) < 0.3] = 0
        tokens[..., 1, 3:] = 0
        rows = np.array([4, 2, 0][:clients], np.int32)
        counted = tokens[..., 1:] != 0
        if clients:
            counted &= (np.arange(4) < rows[:, np.newaxis])[..., np.newaxis]
        arguments = [rows] if clients else []
        total, gradients = gradients_of(lambda tensors: model.loss_sum(tensors, tokens, *arguments), weights)
        masked, expected = gradients_of(
            lambda tensors: tf.reduce_sum(model.token_losses(tensors, tokens) * counted, [-2, -1]), weights
        )
        np.testing.assert_allclose(total, masked, rtol=1e-11)
        for name, gradient in expected.items():
            np.testing.assert_allclose(gradients[name], gradient, atol=1e-10, rtol=1e-10)
        loss, correct = model.loss_and_correct(weights, tokens, *arguments)
        np.testing.assert_allclose(loss, masked, rtol=1e-11)
        right = []
        for client in range(clients or 1):
            own = {name: weight[client] if clients else weight for name, weight in weights.items()}
            its, its_counted = (tokens[client], counted[client]) if clients else (tokens, counted)
            logits, _ = model.extend(own, its[:, :-1], start(model, 4))
            right.append(((logits.numpy().argmax(-1) == its[:, 1:]) & its_counted).sum())
        np.testing.assert_array_equal(correct, right if clients else right[0])

    def test_loss_sum_of_padding_alone_is_zero_with_zero_gradients(self, model):
        weights, tokens = make_weights(model), np.zeros([2, 5], np.int32)
        total, gradients = gradients_of(lambda tensors: model.loss_sum(tensors, tokens), weights)
        assert total == 0
        for gradient in gradients.values():
            assert not np.any(gradient)

    def test_client_axis_equals_a_loop_over_clients(self, model):
        clients = [make_weights(model, seed) for seed in range(3)]
        tokens = make_tokens(3, 2, 7)
        stacked = {name: np.stack([weights[name] for weights in clients]) for name in clients[0]}
        together = model.token_losses(stacked, tokens)
        assert together.shape == (3, 2, 6)
        _, gradients = gradients_of(lambda tensors: tf.reduce_sum(model.token_losses(tensors, tokens)), stacked)
        for client, weights in enumerate(clients):
            own = tokens[client]
            np.testing.assert_allclose(together[client], model.token_losses(weights, own), atol=1e-12, rtol=1e-12)
            _, gradient = gradients_of(
                lambda tensors, own=own: tf.reduce_sum(model.token_losses(tensors, own)), weights
            )
            for name in weights:
                np.testing.assert_allclose(gradients[name][client], gradient[name], atol=1e-11, rtol=1e-11)

    @given(data=st.data())
    @settings(max_examples=12, deadline=None)
    def test_state_after_any_extends_and_rewinds_gives_the_logits_of_a_fresh_prefill(self, model, data):
        weights, batch = make_weights(model), data.draw(st.integers(1, 3))
        lengths = np.array(data.draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch)), np.int32)
        prompt = make_tokens(batch, 6)
        _, state = model.prefill(weights, prompt, lengths)
        texts = [list(prompt[index, :length]) for index, length in enumerate(lengths)]
        for call in range(data.draw(st.integers(1, 3))):
            new = data.draw(st.integers(1, 4))
            kept = np.array(data.draw(st.lists(st.integers(0, new), min_size=batch, max_size=batch)), np.int32)
            more = make_tokens(batch, new, seed=10 + call)
            logits, trail = model.extend(weights, more, state)
            for index, text in enumerate(texts):
                whole = np.array([*text, *more[index]], np.int32)
                expected = self.oracle_logits(model, weights, whole)[-new:]
                np.testing.assert_allclose(logits[index], expected, rtol=1e-10, atol=1e-10)
                text.extend(more[index, : kept[index]])
            state = model.rewind(trail, kept)
        probe = make_tokens(batch, 1, seed=20)
        logits, _ = model.extend(weights, probe, state)
        for index, text in enumerate(texts):
            fresh, _ = model.prefill(
                weights, np.array([[*text, probe[index, 0]]], np.int32), np.array([len(text) + 1], np.int32)
            )
            np.testing.assert_allclose(logits[index, 0], fresh[0], rtol=1e-10, atol=1e-10)

    def test_rewinds_in_float32_give_the_logits_of_a_fresh_prefill_up_to_rounding(self, model):
        # Half as large: a recurrence with larger weights amplifies rounding without a bound.
        weights = {name: 0.5 * weight for name, weight in make_weights(model, dtype=np.float32).items()}
        lengths = np.array([6, 2], np.int32)
        prompt, more, probe = make_tokens(2, 6), make_tokens(2, 4, seed=2), make_tokens(2, 1, seed=3)
        kept = np.array([1, 3], np.int32)

        def rewound(weights):
            _, state = model.prefill(weights, prompt, lengths)
            for _ in range(2):
                _, trail = model.extend(weights, more, state)
                state = model.rewind(trail, kept)
            return model.extend(weights, probe, state)[0][:, 0]

        found = rewound(weights)
        within = rounding(self.operations(model), condition(lambda changed: [rewound(changed)], weights))
        for row, (length, count) in enumerate(zip(lengths, kept, strict=True)):
            text = [*prompt[row, :length], *more[row, :count], *more[row, :count], probe[row, 0]]
            fresh, _ = model.prefill(weights, np.array([text], np.int32), np.array([len(text)], np.int32))
            np.testing.assert_allclose(found[row], fresh[0], rtol=0, atol=within)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_logits_do_not_depend_on_the_batch_or_on_how_a_row_is_split(self, model, dtype, record_property):
        weights, tokens = make_weights(model, dtype=dtype), make_tokens(3, 12)
        logits, _ = model.extend(weights, tokens, start(model, 3, dtype))
        alone = [model.extend(weights, tokens[index : index + 1], start(model, 1, dtype))[0][0] for index in range(3)]
        state, parts = start(model, 3, dtype), []
        for part in (tokens[:, :1], tokens[:, 1:6], tokens[:, 6:]):
            found, trail = model.extend(weights, part, state)
            state = model.rewind(trail, np.full(3, part.shape[1], np.int32))
            parts.append(found)
        difference = max(largest_difference(logits, alone), largest_difference(logits, np.concatenate(parts, axis=1)))
        record_property("largest difference of a logit", difference)
        of_logits = condition(lambda changed: [model.extend(changed, tokens, start(model, 3, dtype))[0]], weights)
        assert difference <= rounding(self.operations(model), of_logits, dtype)

    def test_prefill_in_parts_equals_prefill_at_once(self, model):
        """The second part is ragged and padded, as the last part of a long prompt is."""
        weights, tokens = make_weights(model), make_tokens(2, 9)
        lengths = np.array([9, 7], np.int32)
        expected, whole = model.prefill(weights, tokens, lengths)
        _, state = model.prefill(weights, tokens[:, :5], np.array([5, 5], np.int32), start(model, 2))
        logits, state = model.prefill(weights, tokens[:, 5:], lengths - 5, state)
        np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-10)
        probe = make_tokens(2, 2, seed=5)
        after_parts, after_whole = (model.extend(weights, probe, s)[0] for s in (state, whole))
        np.testing.assert_allclose(after_parts, after_whole, rtol=1e-10, atol=1e-10)

    def test_select_gives_the_state_after_any_number_of_single_steps(self, model):
        weights, tokens, probe = make_weights(model), make_tokens(4, 3), make_tokens(4, 2, seed=6)
        _, state = model.prefill(weights, make_tokens(4, 5, seed=7), np.array([5, 2, 3, 1], np.int32))
        states = [state]
        for place in range(3):
            _, trail = model.extend(weights, tokens[:, place : place + 1], states[-1])
            states.append(model.rewind(trail, np.ones(4, np.int32)))
        kept = np.array([0, 1, 2, 3], np.int32)
        logits, _ = model.extend(weights, probe, model.select(states, kept))
        for index, count in enumerate(kept):
            expected, _ = model.extend(weights, probe, states[count])
            np.testing.assert_allclose(logits[index], expected[index], rtol=1e-10, atol=1e-10)

    def test_prefill_of_no_token_keeps_a_row_as_it_is(self, model):
        weights, tokens, probe = make_weights(model), make_tokens(2, 4), make_tokens(2, 2, seed=6)
        _, before = model.prefill(weights, tokens, np.array([4, 2], np.int32), start(model, 2))
        _, state = model.prefill(weights, tokens, np.array([0, 3], np.int32), before)
        kept, fresh = (model.extend(weights, probe, s)[0] for s in (state, before))
        np.testing.assert_allclose(kept[0], fresh[0], rtol=1e-12, atol=1e-12)
        assert largest_difference(kept[1], fresh[1]) > 1e-3
        _, empty = model.prefill(weights, tokens, np.array([0, 0], np.int32))
        expected, _ = model.extend(weights, probe, start(model, 2))
        np.testing.assert_allclose(model.extend(weights, probe, empty)[0], expected, rtol=1e-12, atol=1e-12)

    def test_extend_with_hidden_gives_what_the_output_layer_reads(self, model):
        weights, tokens = make_weights(model), make_tokens(2, 4)
        expected, trail = model.extend(weights, tokens, start(model, 2))
        logits, hidden, same_trail = model.extend_with_hidden(weights, tokens, start(model, 2))
        np.testing.assert_array_equal(logits, expected)
        tf.nest.map_structure(np.testing.assert_array_equal, same_trail, trail)
        table = weights.get("output", weights["embedding"])
        np.testing.assert_allclose(hidden @ table.T + weights.get("output_bias", 0.0), logits, atol=1e-12, rtol=1e-12)

    def test_hidden_states_are_those_of_extend_up_to_the_last_target_of_each_row(self, model):
        weights, tokens = make_weights(model), make_tokens(3, 6)
        tokens[0, 3:] = 0
        logits, expected, _ = model.extend_with_hidden(weights, tokens[:, :-1], start(model, 3))
        used = [np.arange(5) <= np.max(np.flatnonzero(row[1:])) for row in tokens]
        stacked = {name: np.stack([weight, 2 * weight]) for name, weight in weights.items()}
        of_clients = model.hidden_states(stacked, np.stack([tokens, tokens]))
        first = [None if part is None else part[0] for part in of_clients]
        for hidden, table, bias in (model.hidden_states(weights, tokens), first):
            np.testing.assert_allclose(hidden.numpy()[used], expected.numpy()[used], rtol=1e-11, atol=1e-11)
            products = hidden @ tf.transpose(table) + (0.0 if bias is None else bias)
            np.testing.assert_allclose(products.numpy()[used], logits.numpy()[used], rtol=1e-11, atol=1e-11)
        again = model.logits(weights, expected[:, -1])
        np.testing.assert_allclose(again, logits[:, -1], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("compiled", [False, True], ids=["graph", "XLA"])
    def test_graph_and_xla_equal_eager_mode(self, model, compiled):
        # In float64 rounding is so small that any other difference stands out.
        weights = {n: tf.constant(w) for n, w in make_weights(model).items()}
        tokens, lengths, kept = make_tokens(3, 5), tf.constant([1, 2, 4]), tf.constant([0, 1, 2])

        def train(weights, tokens):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                losses = model.token_losses(weights, tokens)
                loss = tf.reduce_sum(losses)
            return losses, tape.gradient(loss, weights)

        def decode(weights, tokens, lengths, kept):
            logits, state = model.prefill(weights, tokens, lengths)
            more, trail = model.extend(weights, tokens[:, :2], state)
            rewound = model.rewind(trail, kept)
            again, _ = model.extend(weights, tokens[:, :1], rewound)
            return logits, more, again

        cases: list[Any] = [(train, (tokens,)), (decode, (tokens[:, :4], lengths, kept))]
        for function, arguments in cases:
            expected = function(weights, *arguments)
            actual = tf.function(function, jit_compile=compiled, autograph=False)(weights, *map(tf.constant, arguments))
            tf.nest.map_structure(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-8), actual, expected
            )

    def test_fit_changes_no_logits_and_keeps_the_weights(self, model):
        small = model.fit(8)
        assert small.shapes() == model.shapes()
        weights, tokens = make_weights(model), make_tokens(2, 8)
        expected, _ = model.extend(weights, tokens, start(model, 2))
        logits, _ = small.extend(weights, tokens, start(small, 2))
        np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("context", [0, -1, 2.0, True])
    def test_fit_refuses_a_context_that_is_not_a_positive_integer(self, model, context):
        with pytest.raises(ValueError, match="is not a positive integer"):
            model.fit(context)

    def test_init_depends_on_the_seed_alone_and_fits_the_shapes(self, model):
        weights, again, other = model.init(3), model.init(3), model.init(4)
        assert list(weights) == sorted(weights)
        assert {name: weight.shape for name, weight in weights.items()} == model.shapes()
        for name, weight in weights.items():
            assert weight.dtype == np.float32
            np.testing.assert_array_equal(weight, again[name])
        assert not np.array_equal(weights["embedding"], other["embedding"])

    def test_config_is_json_and_rebuilds_the_same_model(self, model):
        assert from_config(json.loads(json.dumps(model.config()))) == model

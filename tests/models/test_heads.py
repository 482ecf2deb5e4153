"""Prediction heads: their losses and gradients are those of a slow oracle, and head 1 is the base model to the bit."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import output_layer, presets
from models.export import convert, ops
from models.heads import HeadedLanguageModel, without_heads
from models.keras_model import to_keras
from models.litert import import_interpreter
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from tests.models.language_models import VOCABULARY, gradients_of, make_tokens, make_weights, start
from tests.oracles import heads as oracle
from tests.tolerance import FUNCTION, condition, rounding

pytestmark = pytest.mark.numerical

V, E, HEADS = VOCABULARY, 8, 4
LLAMA: dict[str, Any] = {
    "normalization": "rms",
    "activation": "swiglu",
    "key_value_heads": 1,
    "attention_bias": True,
    "tied": False,
}
MODELS = {
    "recurrent": HeadedLanguageModel(RecurrentLanguageModel("cifg", V, E, 6, output_bias=True), HEADS),
    "transformer": HeadedLanguageModel(TransformerLanguageModel(V, E, 1, 2, 12, context=24, **LLAMA), HEADS),
}
CLIENTS = pytest.mark.parametrize("clients", [0, 3])
FROZEN = pytest.mark.parametrize("is_frozen", [False, True], ids=["joint", "frozen"])


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]


class Case:
    """Holds weights and tokens with padding at the end of rows, inside rows and, with clients, in whole rows."""

    def __init__(self, model, clients, is_frozen):
        rng, lead = np.random.default_rng(3), [clients] * (clients > 0)
        base = {name: rng.normal(size=shape) for name, shape in model.base.shapes().items()}
        self.base = (
            base if is_frozen or not clients else {n: rng.normal(size=(*lead, *w.shape)) for n, w in base.items()}
        )
        self.heads = {n: rng.normal(size=(*lead, E, E)) for n in model.shapes() if n.startswith("head_")}
        self.model = HeadedLanguageModel(model.base, HEADS, base) if is_frozen else model
        self.weights = self.heads if is_frozen else {**self.base, **self.heads}
        self.tokens = rng.integers(1, V, (*lead, 4, 7)).astype(np.int32)
        self.tokens[rng.random(self.tokens.shape) < 0.2] = 0
        self.tokens[..., 1, 3:] = 0
        self.arguments = [np.array([4, 2, 0], np.int32)] if clients else []
        self.clients, self.is_frozen = clients, is_frozen

    def expected(self, weights):
        """Returns the loss sum of the oracle, [] or [clients]."""
        if not self.clients:
            return oracle.loss_sum(self.model.base, {**self.base, **weights}, self.tokens, HEADS)
        losses = []
        for client, rows in enumerate(self.arguments[0]):
            own = {**self.base, **{name: weight[client] for name, weight in weights.items()}}
            losses.append(oracle.loss_sum(self.model.base, own, self.tokens[client, :rows], HEADS))
        return np.array(losses)

    def found(self, weights):
        return self.model.loss_sum(weights, self.tokens, *self.arguments)

    def check(self):
        np.testing.assert_allclose(self.found(self.weights), self.expected(self.weights), rtol=1e-11)


@FROZEN
@CLIENTS
def test_losses_and_gradients_equal_those_of_the_oracle(model, clients, is_frozen):
    """The upstream gradient differs between the clients, so that a gradient of another client's loss shows."""
    case, factors = Case(model, clients, is_frozen), np.arange(1.0, clients + 1) if clients else 2.0
    case.check()
    _, gradient = gradients_of(lambda weights: tf.reduce_sum(factors * case.found(weights)), case.weights)
    assert gradient.keys() == case.weights.keys()
    rng, step = np.random.default_rng(2), 1e-6
    for name, weight in case.weights.items():
        direction = rng.normal(size=weight.shape)
        ahead, behind = ({**case.weights, name: weight + sign * step * direction} for sign in (1, -1))
        expected = factors * (case.expected(ahead) - case.expected(behind)) / (2 * step)
        axes = tuple(range(1, weight.ndim)) if clients else None
        np.testing.assert_allclose(np.sum(gradient[name] * direction, axis=axes), expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize(("clients", "is_frozen"), [(0, False), (3, False), (3, True)])
def test_correct_targets_are_those_of_head_1(model, clients, is_frozen):
    case = Case(model, clients, is_frozen)
    loss, correct = case.model.loss_and_correct(case.weights, case.tokens, *case.arguments)
    np.testing.assert_allclose(loss, case.found(case.weights), rtol=1e-12)
    if clients and is_frozen:
        rows = [case.tokens[client, :count] for client, count in enumerate(case.arguments[0])]
        of_base = [model.base.loss_and_correct(case.base, each)[1] for each in rows]
    else:
        of_base = model.base.loss_and_correct(case.base, case.tokens, *case.arguments)[1]
    np.testing.assert_array_equal(correct, of_base)


@pytest.mark.parametrize(("clients", "is_frozen"), [(0, False), (3, False), (3, True)])
@pytest.mark.parametrize("bug", ["head i learns target i - 1", "padding counts", "head 3 reads the weights of head 2"])
def test_planted_bugs_are_caught(clients, is_frozen, bug, monkeypatch):
    case = Case(MODELS["transformer"], clients, is_frozen)
    in_turn = output_layer.sums_in_turn

    def with_other_targets(outputs, table, bias, targets, *options):
        if bug == "padding counts":
            others = [tf.maximum(each, 1) for each in targets[1:]]
        else:
            others = [each[..., :-1] for each in targets[:-1]]
        return in_turn(outputs, table, bias, [targets[0], *others], *options)

    if bug != "head 3 reads the weights of head 2":
        monkeypatch.setattr(output_layer, "sums_in_turn", with_other_targets)
    else:
        head_hidden = HeadedLanguageModel.head_hidden
        monkeypatch.setattr(
            HeadedLanguageModel,
            "head_hidden",
            lambda self, w, x, head: head_hidden(self, w, x, 2 if head == 3 else head),
        )
    with pytest.raises(AssertionError):
        case.check()


def test_heads_without_targets_in_short_rows_add_nothing(model):
    weights, tokens = make_weights(model), np.array([[3, 4, 5], [6, 7, 0]], np.int32)
    total, gradient = gradients_of(lambda values: model.loss_sum(values, tokens), weights)
    np.testing.assert_allclose(total, oracle.loss_sum(model.base, weights, tokens, HEADS), rtol=1e-11)
    assert not np.any(gradient["head_4.inner"]) and np.any(gradient["head_2.inner"])


def test_graphs_compute_the_losses_of_eager_mode_with_one_head_s_logits_at_a_time():
    case = Case(MODELS["transformer"], 0, is_frozen=False)
    tensors = {name: tf.constant(weight) for name, weight in case.weights.items()}

    @tf.function(autograph=False)
    def train(weights):
        return gradients_of(case.found, weights)

    expected = gradients_of(case.found, tensors)
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), train(tensors), expected
    )
    operations = train.get_concrete_function(tensors).graph.get_operations()
    of_heads = [each for each in operations if each.type == "Softmax" and each.outputs[0].shape[-1] == V]
    assert len(of_heads) == HEADS
    for before, after in zip(of_heads, of_heads[1:], strict=False):
        assert before in ancestors(after)


def ancestors(operation):
    """Returns all operations that must have run before an operation."""
    found: set[Any] = set()
    new = [operation]
    while new:
        each = new.pop()
        needed = {*each.control_inputs, *(value.op for value in each.inputs)} - found
        found |= needed
        new.extend(needed)
    return found


@FROZEN
def test_head_1_is_the_base_model_bit_for_bit(model, is_frozen):
    weights, prompt, tokens = make_weights(model, dtype=np.float32), make_tokens(2, 5), make_tokens(2, 3, seed=2)
    base, heads = model.split(weights)
    model = HeadedLanguageModel(model.base, HEADS, base) if is_frozen else model
    lengths, kept = np.array([5, 3], np.int32), np.array([1, 2], np.int32)

    def run(model, weights):
        logits, state = model.prefill(weights, prompt, lengths)
        more, trail = model.extend(weights, tokens, state)
        with_hidden = model.extend_with_hidden(weights, tokens, model.rewind(trail, kept))
        single = model.extend(weights, tokens[:, :1], state)[1]
        selected = model.select([state, model.rewind(single, np.ones(2, np.int32))], np.array([0, 1], np.int32))
        return logits, more, with_hidden, selected, model.token_losses(weights, tokens), model.initial_state(2)

    found, expected = run(model, heads if is_frozen else weights), run(model.base, base)
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def test_new_heads_give_the_logits_of_the_base_and_all_heads_those_of_the_oracle(model):
    weights, tokens = make_weights(model), make_tokens(2, 5)
    new = {**weights, **{name: weight.astype(np.float64) for name, weight in model.init_heads(0).items()}}
    expected, hidden, _ = model.extend_with_hidden(weights, tokens, start(model, 2))
    for values in (weights, new):
        logits = model.head_logits(values, hidden[:, -1])
        assert logits.shape == (2, HEADS, V)
        np.testing.assert_allclose(logits[:, 0], expected[:, -1], rtol=1e-12, atol=1e-12)
        for row in range(2):
            for head in range(1, HEADS + 1):
                right = oracle.logits(values, hidden[row, -1].numpy(), head)
                np.testing.assert_allclose(logits[row, head - 1], right, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(logits, tf.repeat(expected[:, -1:], HEADS, axis=1), rtol=1e-12, atol=1e-12)


def test_training_heads_on_a_frozen_base_lowers_their_loss_and_leaves_the_base_as_it_is(model):
    base, tokens = model.base.init(0), np.tile((1 + np.arange(9) % 5).astype(np.int32), (4, 1))
    constants = {name: tf.constant(weight) for name, weight in base.items()}
    frozen = HeadedLanguageModel(model.base, HEADS, constants)
    assert frozen.shapes() == {f"head_{i}.{part}": (E, E) for i in (2, 3, 4) for part in ("inner", "outer")}
    weights = frozen.init(0)
    assert weights.keys() == frozen.shapes().keys()
    before = float(frozen.loss_sum(weights, tokens))
    for _ in range(10):
        with tf.GradientTape() as tape:
            tape.watch(constants)
            values = {name: tf.constant(weight) for name, weight in weights.items()}
            tape.watch(values)
            loss = frozen.loss_sum(values, tokens)
        gradient, of_base = tape.gradient(loss, (values, constants))
        assert all(each is None for each in of_base.values())
        weights = {name: weight - 0.02 * gradient[name].numpy() for name, weight in weights.items()}
    assert float(frozen.loss_sum(weights, tokens)) < before - 1
    whole, heads = frozen.split(weights)
    for name, weight in base.items():
        np.testing.assert_array_equal(whole[name], weight)
    assert heads.keys() == weights.keys()


@FROZEN
def test_equalized_weights_compute_the_same(model, is_frozen):
    weights, hidden = make_weights(model, dtype=np.float32), np.random.default_rng(1).normal(size=(2, E)).astype("f4")
    if is_frozen:
        base, weights = model.split(weights)
        model = HeadedLanguageModel(model.base, HEADS, base)
    equalized = model.equalized(weights)
    assert set(model.base.shapes()) < set(equalized) and np.max(np.abs(equalized["head_2.inner"])) <= 1
    of_logits = condition(lambda changed: [model.head_logits(changed, hidden)], weights)
    within = rounding(
        3 * (E + 2) + FUNCTION, max(of_logits, condition(lambda h: [model.head_logits(weights, h["h"])], {"h": hidden}))
    )
    np.testing.assert_allclose(model.head_logits(equalized, hidden), model.head_logits(weights, hidden), atol=within)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("int8", 0.05)])
def test_head_logits_convert_to_builtin_ops(precision, tolerance):
    """The matrices are large enough to be quantised. Another head's logits are 0.18 of the spread away."""
    model, module = HeadedLanguageModel(TransformerLanguageModel(64, 32, 1, 2, 12, context=24, **LLAMA), 3), tf.Module()
    weights = {name: weight / 6 for name, weight in make_weights(model, dtype=np.float32).items()}
    values = model.equalized(weights) if precision == "int8" else weights
    module.held = {name: tf.Variable(value) for name, value in values.items()}
    function = tf.function(lambda hidden: {"logits": model.head_logits(module.held, hidden)}, autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec([1, 32], tf.float32, "hidden"))
    flatbuffer = convert(module, {"heads": concrete}, precision)
    assert not [name for name in ops(flatbuffer) if name.startswith(("CUSTOM", "Flex"))]
    hidden = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
    found = import_interpreter()(model_content=flatbuffer).get_signature_runner("heads")(hidden=hidden)["logits"]
    expected = model.head_logits(weights, hidden).numpy()
    np.testing.assert_allclose(found, expected, atol=tolerance * np.ptp(expected))


def test_config_rebuilds_the_model_and_keeps_the_entries_of_the_base(model):
    config = json.loads(json.dumps(model.config()))
    assert presets.from_config(config) == model
    assert {name: value for name, value in config.items() if name != "prediction_heads"} == model.base.config()
    assert presets.from_config(model.base.config()) == model.base


def test_fit_shapes_and_init(model):
    small = model.fit(8)
    assert small.base == model.base.fit(8) and small.shapes() == model.shapes()
    weights, again = model.init(3), model.init(3)
    assert list(weights) == sorted(weights) and {n: w.shape for n, w in weights.items()} == model.shapes()
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, again[name])
    assert not np.any(weights["head_2.outer"]) and not np.array_equal(weights["head_2.inner"], weights["head_3.inner"])
    assert not np.array_equal(weights["head_2.inner"], model.init(4)["head_2.inner"])


def test_without_heads_gives_the_base_and_another_model_as_it_is(model):
    weights = make_weights(model)
    base, of_base = without_heads(model, weights)
    assert base is model.base and {name: weight.shape for name, weight in of_base.items()} == base.shapes()
    assert without_heads(base, of_base) == (base, of_base)


@pytest.mark.parametrize("heads", [0, 17, -1, 2.0, True, float("nan"), None])
def test_a_number_of_heads_out_of_range_is_refused(heads):
    with pytest.raises(ValueError, match=r"^prediction_heads: .* is not an integer from 1 to 16$"):
        HeadedLanguageModel(MODELS["recurrent"].base, heads)
    with pytest.raises(ValueError, match="prediction_heads"):
        presets.with_heads(MODELS["recurrent"].base, heads)


def test_heads_on_heads_and_weights_of_another_base_are_refused(model):
    with pytest.raises(ValueError, match="^base: the model has 4 prediction heads already$"):
        HeadedLanguageModel(model, 2)
    others = [other.base.init(0) for other in MODELS.values() if other.base != model.base]
    missing = model.base.init(0)
    del missing["embedding"]
    for wrong in (*others, missing, model.init(0)):
        with pytest.raises(ValueError, match="^base_weights: '.*' is missing, unknown or of another shape") as error:
            HeadedLanguageModel(model.base, HEADS, wrong)
        assert "\n" not in str(error.value)


def test_keras_has_no_prediction_heads(model):
    with pytest.raises(ValueError, match="prediction heads have no Keras form: build the base, to_keras"):
        to_keras(model)

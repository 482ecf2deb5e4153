import json
import os
import zipfile
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.keras_layers import CIFG, SICIFG, CIFGCell, SICIFGCell
from models.keras_model import from_keras, load_into_keras, load_keras, to_keras
from models.recurrent_lm import RecurrentLanguageModel
from tests.models import exported
from tests.oracles import cifg as oracle
from tests.tolerance import FUNCTION, condition, rounding, weights_conditions

# Raised by Keras 3 itself, where it saves a variable under NumPy 2.
pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

B, T, E, H, R = 3, 6, 4, 7, 5
PAIRS = pytest.mark.parametrize(
    ("cell_type", "layer_type"), [(CIFGCell, CIFG), (SICIFGCell, SICIFG)], ids=["cifg", "si-cifg"]
)
CELLS = pytest.mark.parametrize("cell", ["cifg", "si-cifg"])
# Operations of one step, each weight of which `condition` changes in all steps: the products and bias of a gate, its
# sigmoid and the tanh of the cell, the new cell and output, layer normalisation, projection.
STEP = (E + H + 1) + 2 * FUNCTION + 5 + (3 * H + FUNCTION) + H


def make_inputs(steps=T):
    return np.random.default_rng(0).normal(size=(B, steps, E)).astype(np.float32)


def make_pair(cell_type, layer_type, projection=R, layer_norm=False, go_backwards=False, **rnn_options):
    """Builds RNN(cell) and the fused layer with the same weights, none of them zero."""
    rnn = keras.layers.RNN(
        cell_type(H, projection=projection, layer_norm=layer_norm),
        return_sequences=True,
        return_state=True,
        go_backwards=go_backwards,
        **rnn_options,
    )
    fused = layer_type(H, projection, layer_norm, True, True, go_backwards)
    rnn(make_inputs())
    fused(make_inputs())
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=w.shape).astype(np.float32) / 2 for w in rnn.get_weights()]
    rnn.set_weights(weights)
    fused.set_weights(weights)
    return rnn, fused


def assert_close(actual, expected, atol):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize(
    "options", [{}, {"unroll": True}, {"go_backwards": True}], ids=["loop", "unrolled", "backwards"]
)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("projection", [None, R])
@PAIRS
def test_fused_layer_equals_rnn_of_the_cell(cell_type, layer_type, projection, layer_norm, options):
    rnn, fused = make_pair(cell_type, layer_type, projection, layer_norm, **options)
    rng = np.random.default_rng(2)
    inputs = tf.constant(make_inputs())
    mask = rng.random((B, T)) < 0.6
    mask[0, :2] = False  # a row that begins with padding
    start = [tf.constant(rng.normal(size=(B, n)).astype(np.float32)) for n in (projection or H, H)]
    within = rounding(STEP, max(weights_conditions(fused, lambda: fused(inputs, initial_state=start))))
    for masked in ({}, {"mask": tf.constant(mask)}):
        for started in ({}, {"initial_state": start}):
            assert_close(fused(inputs, **masked, **started), rnn(inputs, **masked, **started), within)


@PAIRS
def test_the_fused_layer_has_the_gradients_of_rnn_of_the_cell(cell_type, layer_type):
    def gradient(layer):
        with tf.GradientTape() as tape:
            outputs, _, cell = layer(make_inputs())
            loss = tf.reduce_sum(tf.cos(outputs)) + tf.reduce_sum(cell**2)
        return tape.gradient(loss, layer.trainable_weights)

    rnn, fused = make_pair(cell_type, layer_type)
    # Forward, two products backward for each of forward's, and a weight's sum over steps and rows.
    within = rounding(3 * STEP + B * T, max(weights_conditions(fused, lambda: gradient(fused))))
    assert_close(gradient(rnn), gradient(fused), within)


@PAIRS
def test_fused_layer_equals_the_oracle(cell_type, layer_type):
    _, fused = make_pair(cell_type, layer_type)
    weights = {n: np.asarray(v, np.float64) for n, v in fused.cell.compute_weights().items()}
    outputs, _, cell = fused(make_inputs())
    within = rounding(STEP, max(weights_conditions(fused, lambda: fused(make_inputs()))))
    for row, inputs in enumerate(make_inputs()):
        expected, cells = oracle.states(cell_type.kind, weights, inputs)
        np.testing.assert_allclose(outputs[row], expected, atol=within)
        np.testing.assert_allclose(cell[row], cells[-1], atol=within)


@PAIRS
def test_layers_apply_the_mask_of_an_embedding_and_return_the_last_output(cell_type, layer_type):
    ids = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    embedding = keras.layers.Embedding(6, E, mask_zero=True)
    rnn, fused = keras.layers.RNN(cell_type(H)), layer_type(H)
    assert rnn(embedding(ids)).shape == fused(embedding(ids)).shape == (2, H)
    fused.set_weights(rnn.get_weights())
    within = rounding(STEP, max(weights_conditions(fused, lambda: [fused(embedding(ids))])))
    np.testing.assert_allclose(fused(embedding(ids)), rnn(embedding(ids)), atol=within)
    unpadded = fused(embedding(ids[1:, :1]))
    np.testing.assert_allclose(fused(embedding(ids))[1:], unpadded, atol=within)


@PAIRS
def test_stacked_cells_equal_stacked_layers(cell_type, layer_type):
    stacked = keras.layers.RNN([cell_type(H, projection=R), cell_type(3)], return_sequences=True)
    first, second = layer_type(H, R, return_sequences=True), layer_type(3, return_sequences=True)
    expected = stacked(make_inputs())
    second(first(make_inputs()))
    weights = stacked.get_weights()
    first.set_weights(weights[:4])
    second.set_weights(weights[4:])
    within = rounding(2 * STEP, max(weights_conditions(stacked, lambda: [stacked(make_inputs())])))
    np.testing.assert_allclose(second(first(make_inputs())), expected, atol=within)


@PAIRS
def test_bidirectional_layer_equals_bidirectional_rnn_and_survives_saving(cell_type, layer_type, tmp_path):
    ids = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    models = []
    for layer in (keras.layers.RNN(cell_type(H, R), return_sequences=True), layer_type(H, R, return_sequences=True)):
        both = [keras.layers.Embedding(6, E, mask_zero=True), keras.layers.Bidirectional(layer)]
        models.append(keras.Sequential([keras.Input((5,), dtype="int32"), *both]))
    models[1].set_weights(models[0].get_weights())
    within = rounding(STEP, max(weights_conditions(models[1], lambda: [models[1](ids)])))
    np.testing.assert_allclose(models[1](ids), models[0](ids), atol=within)
    models[1].save(tmp_path / "both.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "both.keras")(ids), models[1](ids))


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16", "float64"])
@PAIRS
def test_layers_follow_the_dtype_policy(cell_type, layer_type, policy):
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT") != "DEFAULT"
    if "bfloat16" in policy and held and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        pytest.skip("TensorFlow's bfloat16 product ends the process where oneDNN is held to older instructions")
    compute = policy.removeprefix("mixed_")
    variable = "float32" if policy.startswith("mixed_") else compute
    rnn = keras.layers.RNN(cell_type(H, R, dtype=policy), dtype=policy)
    fused = layer_type(H, R, dtype=policy)
    for layer in (rnn, fused):
        output = layer(tf.cast(make_inputs(), compute))
        assert output.dtype == compute
        assert np.all(np.isfinite(tf.cast(output, tf.float32)))
        assert {tf.as_dtype(w.dtype).name for w in layer.weights} == {variable}


@PAIRS
def test_layers_are_restored_from_config_and_file(cell_type, layer_type, tmp_path):
    inputs = keras.Input((None, E))
    hidden = keras.layers.RNN(cell_type(H, projection=R, layer_norm=True), return_sequences=True)(inputs)
    outputs = layer_type(H, R, layer_norm=True, return_state=True)(hidden)
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(make_inputs()), model(make_inputs()), atol=0)
    for layer in (cell_type(H, R, True), layer_type(H, R, True, return_sequences=True)):
        assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_layer_accepts_numpy_integers_as_sizes(tmp_path):
    wide: Any = np.int64
    layer = CIFG(wide(H), wide(R))
    assert json.dumps(layer.get_config()["units"]) == str(H) and layer.cell.projection == R


@pytest.mark.parametrize("arguments", [{"units": 0}, {"units": 3, "projection": -1}, {"units": 2.5}])
@PAIRS
def test_layers_refuse_sizes_that_are_not_positive_integers(cell_type, layer_type, arguments):
    for build in (cell_type, layer_type):
        with pytest.raises(ValueError, match=f"{list(arguments)[-1]} .* is not a positive integer"):
            build(**arguments)


def make_language_model(cell, **options):
    model = RecurrentLanguageModel(cell, 11, 4, 6, **options)
    rng = np.random.default_rng(3)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in model.shapes().items()}
    return model, weights, rng.integers(0, 11, (5, 9)).astype(np.int32)


def make_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "output_bias": True}])
@pytest.mark.parametrize("length", [None, 8])
@CELLS
def test_keras_model_gives_the_losses_of_the_language_model(cell, options, length):
    model, weights, tokens = make_language_model(cell, **options)
    logits = to_keras(model, weights, length)(tokens[:, :-1])
    assert logits.shape == (5, 8, 11)
    log_probs = tf.nn.log_softmax(logits).numpy()
    losses = -np.take_along_axis(log_probs, tokens[:, 1:, np.newaxis], -1)[..., 0]
    # The logits, and the softmax over 11 tokens.
    operations = exported.operations(model) + 11 + 2 * FUNCTION
    within = rounding(operations, condition(lambda changed: [model.token_losses(changed, tokens)], weights))
    np.testing.assert_allclose(losses, model.token_losses(weights, tokens), atol=within)


@CELLS
def test_weights_loaded_into_keras_come_back_unchanged(cell):
    model, weights, _ = make_language_model(cell, output_bias=True)
    keras_model = to_keras(model)
    load_into_keras(keras_model, weights)
    back = from_keras(keras_model)
    assert list(back) == sorted(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(back[name], weight)


def test_new_keras_weights_have_the_distribution_of_init():
    model = RecurrentLanguageModel("si-cifg", 300, 40, 90, output_bias=True)
    drawn, expected = from_keras(to_keras(model)), model.init(0)
    assert {n: w.shape for n, w in drawn.items()} == {n: w.shape for n, w in expected.items()}
    for name, weight in expected.items():
        # Both are standard deviations of samples of one distribution. The bound is 5 sigma of their difference, so
        # that the test fails by chance with probability below 1e-5.
        np.testing.assert_allclose(drawn[name].std(), weight.std(), rtol=5 / np.sqrt(weight.size))


def test_load_into_keras_refuses_wrong_shapes_and_unknown_names():
    model, weights, _ = make_language_model("cifg")
    keras_model = to_keras(model)
    with pytest.raises(ValueError, match="bias has shape"):
        load_into_keras(keras_model, {**weights, "bias": weights["bias"][1:]})
    with pytest.raises(ValueError, match="output_bias"):
        load_into_keras(keras_model, {**weights, "output_bias": np.zeros(11)})


@CELLS
def test_summary_counts_the_tied_embedding_once(cell):
    lines = []
    model = RecurrentLanguageModel(cell, 4000, 96, 192)
    to_keras(model).summary(print_fn=lambda line, **_: lines.append(line))
    expected = 4000 * 96 + 3 * (96 + 96 + 1) * 192 + 192 * 96
    assert any("Total params" in line for line in "\n".join(lines).splitlines())
    assert str(expected) in "\n".join(lines).replace(",", "")


@CELLS
def test_keras_model_trains_and_is_restored_from_a_file(cell, tmp_path):
    model, _, tokens = make_language_model(cell)
    keras_model = to_keras(model, model.init(0))
    keras_model.compile(keras.optimizers.SGD(0.5), loss=make_loss())
    history = keras_model.fit(tokens[:, :-1], tokens[:, 1:], epochs=3, batch_size=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    keras_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), keras_model(tokens))
    for name, weight in from_keras(loaded).items():
        np.testing.assert_array_equal(weight, from_keras(keras_model)[name])


@CELLS
def test_one_keras_sgd_step_equals_one_step_with_the_pure_functions(cell):
    model, weights, tokens = make_language_model(cell)
    keras_model = to_keras(model, weights)
    keras_model.compile(keras.optimizers.SGD(0.1), loss=make_loss())
    keras_model.fit(tokens[:, :-1], tokens[:, 1:], batch_size=5, verbose=0)

    def stepped(weights):
        tensors = {n: tf.constant(w) for n, w in weights.items()}
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = tf.reduce_mean(model.token_losses(tensors, tokens))
        gradient = tape.gradient(loss, tensors)
        return [tensors[name] - 0.1 * gradient[name] for name in sorted(weights)]

    # Forward and twice as much backward, through logits and softmax; a weight's sum over 5 rows of 8 tokens.
    operations = 3 * (exported.operations(model) + 11 + 2 * FUNCTION) + 5 * 8
    within = rounding(operations, condition(stepped, weights))
    assert_close(from_keras(keras_model).values(), stepped(weights), within)


def test_from_keras_refuses_a_model_that_to_keras_did_not_build():
    other = keras.Sequential([keras.Input((5, 4)), CIFG(3)])
    with pytest.raises(ValueError, match="was not built by to_keras: use its get_weights and set_weights"):
        from_keras(other)


OTHER_VERSION = "2.14.0" if keras.__version__.startswith("3") else "3.15.1"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.json": {"keras_version": OTHER_VERSION}, "config.json": {}},
            f"was saved by Keras {OTHER_VERSION} and .*load_into_keras",
        ),
        ({"metadata.json": [], "config.json": {}}, "is not a .keras file"),
        ({"metadata.json": {"keras_version": keras.__version__}}, "is not a .keras file"),
        ({}, "is not a .keras file"),
    ],
)
def test_load_keras_refuses_other_files_and_other_major_versions(files, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        for name, content in files.items():
            file.writestr(name, json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        load_keras(tmp_path / "model.keras")
    assert "\n" not in str(error.value)

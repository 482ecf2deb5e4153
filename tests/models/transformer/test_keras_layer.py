import keras
import numpy as np
import pytest
import tensorflow as tf

from models.keras_model import from_keras, load_into_keras, to_keras
from tests.models.language_models import make_tokens, make_weights
from tests.models.transformer.test_decoder import MODELS, make_model
from tests.tolerance import condition, rounding

# As in tests/models/test_keras.py: Keras 3 reads NumPy arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
NAMES = pytest.mark.parametrize("name", MODELS)


def make_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.numerical
@pytest.mark.parametrize("length", [None, 8])
@NAMES
def test_keras_model_gives_the_logits_of_the_language_model(name, length):
    model = MODELS[name]
    weights, tokens = make_weights(model, dtype=np.float32), make_tokens(3, 8)
    within = rounding(200, condition(lambda changed: [model.forward(changed, tokens)], weights))
    np.testing.assert_allclose(to_keras(model, weights, length)(tokens), model.forward(weights, tokens), atol=within)


@NAMES
def test_weights_loaded_into_keras_come_back_unchanged(name):
    model = MODELS[name]
    weights, keras_model = make_weights(model, dtype=np.float32), to_keras(model)
    load_into_keras(keras_model, weights)
    back = from_keras(keras_model)
    assert list(back) == list(weights)
    for weight, expected in zip(back.values(), weights.values(), strict=True):
        np.testing.assert_array_equal(weight, expected)


@NAMES
def test_new_keras_weights_have_the_distribution_of_init(name):
    model = MODELS[name]
    drawn, expected = from_keras(to_keras(model)), model.init(0)
    for key, weight in expected.items():
        assert drawn[key].shape == weight.shape
        # Both are standard deviations of samples of one distribution. The bound is 5 sigma of their difference, so
        # that a weight fails by chance with probability below 1e-5.
        np.testing.assert_allclose(drawn[key].std(), weight.std(), rtol=5 / np.sqrt(weight.size))


def test_load_into_keras_refuses_wrong_shapes():
    model = make_model()
    weights = make_weights(model)
    with pytest.raises(ValueError, match="block_00.inner has shape"):
        load_into_keras(to_keras(model), {**weights, "block_00.inner": weights["block_00.inner"][1:]})


@NAMES
def test_keras_model_trains_and_is_restored_from_a_file(name, tmp_path):
    model, tokens = MODELS[name], make_tokens(5, 9)
    keras_model = to_keras(model, model.init(0))
    keras_model.compile(keras.optimizers.SGD(0.3), loss=make_loss())
    history = keras_model.fit(tokens[:, :-1], tokens[:, 1:], epochs=4, batch_size=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    keras_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), keras_model(tokens))
    for key, weight in from_keras(loaded).items():
        np.testing.assert_array_equal(weight, from_keras(keras_model)[key])


def test_keras_model_refuses_rows_longer_than_the_context():
    with pytest.raises(ValueError, match="25 tokens do not fit in the model's context of 24"):
        to_keras(make_model(), length=25)


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_layer_follows_the_dtype_policy(policy):
    model = make_model()
    keras.config.set_dtype_policy(policy) if hasattr(keras, "config") else keras.mixed_precision.set_global_policy(
        policy
    )
    try:
        logits = to_keras(model)(make_tokens(2, 5))
    finally:
        keras.config.set_dtype_policy("float32") if hasattr(keras, "config") else (
            keras.mixed_precision.set_global_policy("float32")
        )
    assert tf.as_dtype(logits.dtype).name == policy.removeprefix("mixed_")
    assert np.isfinite(tf.cast(logits, tf.float32)).all()

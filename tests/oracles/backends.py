"""Runs a TensorFlow function in eager mode, as `tf.function`, by XLA, and by TFLite with built-in operators only."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

Function = Callable[..., dict[str, np.ndarray]]


def everywhere(function: Callable[..., dict[str, tf.Tensor]], **example: np.ndarray) -> dict[str, Function]:
    """Returns backend → `function`, for NumPy keyword arguments of the shapes and dtypes of the example."""
    specs = {name: tf.TensorSpec(value.shape, value.dtype, name) for name, value in example.items()}

    def from_numpy(callee: Any) -> Function:
        def call(**arguments: np.ndarray) -> dict[str, np.ndarray]:
            outputs = callee(**{name: tf.constant(value) for name, value in arguments.items()})
            return {name: value.numpy() for name, value in outputs.items()}

        return call

    return {
        "eager": from_numpy(function),
        "function": from_numpy(tf.function(function, autograph=False)),
        "XLA": from_numpy(tf.function(function, jit_compile=True, autograph=False)),
        "TFLite": convert(function, specs),
    }


def run_everywhere(
    function: Callable[..., dict[str, tf.Tensor]], **arguments: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Returns backend → name → output of `function`."""
    return {backend: call(**arguments) for backend, call in everywhere(function, **arguments).items()}


def convert(function: Callable[..., dict[str, tf.Tensor]], specs: dict[str, tf.TensorSpec]) -> Function:
    """Converts `function` to TFLite and returns its signature in the LiteRT runtime."""
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, tf.function(function, autograph=False).get_concrete_function(**specs))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        content = converter.convert()
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    runner: Any = interpreter.get_signature_runner()
    return lambda **arguments: runner(**arguments)

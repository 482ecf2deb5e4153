"""Turns your own Keras model, functional or Sequential, into pure functions of its weights that the engines can train.

To call a model on weights that are tensors, this module clones the model. Each time the clone asks for a variable, it
gets the next of these tensors. The clone exists only while a graph is traced. As in stock `tff.learning`, a mask that
layers pass on (for instance from `Embedding(mask_zero=True)`) does not reach the loss.

Two kinds of models are refused: models with weights that are not trained, such as the moving averages of batch
normalisation (use group or layer normalisation instead), and models that draw random numbers while they train (dropout,
noise). Such draws do not follow from the run's keys. So a round that is repeated after a crash would release another
result under the same noise.
"""

import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fl.engines.stacking import short, why_not_stacked
from fl.local_training import LanguageModelling, Loss, TokenLosses, Weights

log = logging.getLogger(__name__)

_HALF = ("float16", "bfloat16")


def initial_weights(model: keras.Model) -> Weights:
    """Returns the model's weights, float32 arrays named by number, layer and variable: "000_dense/kernel" and so on.

    Raises:
      ValueError: the engines cannot train the model; the message says what to change.
    """
    return {name: variable.numpy() for name, variable in _Function(model).variables.items()}


def assign(model: keras.Model, weights: Weights) -> None:
    """Assigns weights, named as by `initial_weights`, to the model's variables.

    Raises:
      ValueError: a name is missing or unknown, or a shape differs.
    """
    variables = _name_variables(model)
    if set(weights) != set(variables):
        raise ValueError(f"weights: names {sorted(weights)} are not the model's: give {sorted(variables)}")
    for name, variable in variables.items():
        if np.shape(weights[name]) != tuple(variable.shape):
            raise ValueError(
                f"weights: {name} has shape {np.shape(weights[name])}: give the model's, {tuple(variable.shape)}"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


@dataclass(frozen=True)
class KerasTask:
    """Makes a `fl.local_training.Task` of a Keras model and a Keras loss on examples (x, y), as in `tff.learning`.

    The loss of a batch is `loss_function(y, model(x))` plus the model's regularisation losses. Give a client's examples
    to `LocalSGD.batches` as the pair of arrays (x [n, ...], y [n, ...]).

    Attributes:
      model: a built functional or Sequential model with one input of known shape and one output.
      loss_function: a Keras loss that averages or sums over the batch.
      label: spec of one example's y, without batch axis, for instance `tf.TensorSpec([], tf.int32)`.

    Raises:
      ValueError: the engines cannot train the model, or an argument has the wrong type; the message says what to
        change.
    """

    model: keras.Model
    loss_function: keras.losses.Loss
    label: tf.TensorSpec

    def __post_init__(self) -> None:
        if not isinstance(self.loss_function, keras.losses.Loss):
            raise ValueError(
                f"loss_function is {self.loss_function!r}: give an object of keras.losses, such as MeanSquaredError()"
            )
        if self.loss_function.reduction == keras.losses.Reduction.NONE:
            raise ValueError(
                f"loss_function {self.loss_function.name} has reduction 'none': SGD needs one number, use 'auto'"
            )
        if not isinstance(self.label, tf.TensorSpec):
            raise ValueError(
                f"label is {self.label!r}: give the spec of one example's y, such as tf.TensorSpec([], tf.int32)"
            )
        if not (self.label.shape.is_fully_defined() and _is_number(self.label.dtype)):
            raise ValueError(
                f"label is {self.label!r}: give numbers of a known shape, such as tf.TensorSpec([], tf.int32)"
            )
        self._function  # noqa: B018 - checks the model now and not at the first call

    @cached_property
    def _function(self) -> "_Function":
        return _Function(self.model)

    @property
    def example(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Returns the specs of x and y, without batch axis."""
        return tf.TensorSpec(self.model.input_shape[1:], self.model.inputs[0].dtype), self.label

    @property
    def measures_accuracy(self) -> bool:
        """Returns False, because which predictions are correct depends on the task."""
        return False

    @cached_property
    def stacks(self) -> bool:
        """Returns whether clients can be trained stacked, tried once on synthetic data; logs the reason if not."""
        return _log_stacking(self.model, self._why_not_stacked())

    def _why_not_stacked(self) -> str | None:
        usual = (keras.losses.Reduction.AUTO, keras.losses.Reduction.SUM_OVER_BATCH_SIZE)
        if self.loss_function.reduction not in usual:
            return f"the loss's reduction is {self.loss_function.reduction!r}"
        with contextlib.suppress(NotImplementedError):
            if self.loss_function.get_config().get("ignore_class") is not None:
                return "the loss has an ignore_class"
        return self._function.loops_over_time() or why_not_stacked(self, initial_weights(self.model))

    def forms(self, batch: Any) -> tuple[int, list[Any]]:
        """Returns (0, [batch]), because this task computes a batch in one shape only; see `Task.forms`."""
        return 0, [batch]

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """Returns `rows` times the batch's loss, and `rows`; see `fl.local_training.Task.loss`."""
        x, y = batch
        count = tf.cast(rows, tf.float32)
        if count.shape.rank == 0:
            predictions, penalties = self._function(weights, x)
            return Loss(count * tf.add_n([self.loss_function(y, predictions), *penalties]), count)

        def client_loss(arguments: Any) -> tf.Tensor:
            weights, x, y, rows = arguments
            size = tf.shape(x)[0]
            predictions, penalties = self._function(weights, x)
            mean = self.loss_function(y, predictions, sample_weight=tf.sequence_mask(rows, size, tf.float32))
            return tf.cast(size, tf.float32) * mean + tf.cast(rows, tf.float32) * sum(penalties)

        return Loss(_map_over_clients(client_loss, (weights, x, y, rows)), count)


def language_modelling(model: keras.Model) -> LanguageModelling:
    """Returns the task of a Keras language model, which maps tokens int32 [B, T] to logits [B, T, V].

    The logits at position t predict token t + 1. Padding (token 0) is never a target, and T is fixed by the model's
    input. Examples are token sequences, as for fedspeak's own models, and the weights are `initial_weights(model)`.

    Raises:
      ValueError: the engines cannot train the model; the message says what to change.
    """
    function = _Function(model)
    if len(model.output_shape) != 3 or len(model.input_shape) != 2:
        shapes = f"{model.input_shape} -> {model.output_shape}"
        raise ValueError(
            f"model {model.name} maps {shapes}: give a model tokens [batch, T] -> logits [batch, T, vocabulary]"
        )
    if function.penalties:
        raise ValueError(f"model {model.name} has regularisation losses, which belong to no token: remove them")
    task = LanguageModelling(_build_token_losses(function), model.input_shape[1])
    reason = function.loops_over_time() or why_not_stacked(task, initial_weights(model))
    return LanguageModelling(task.token_losses, task.sequence_length, stacks=_log_stacking(model, reason))


def _build_token_losses(function: "_Function") -> TokenLosses:
    def client_losses(arguments: Any) -> tf.Tensor:
        weights, tokens = arguments
        logits, _ = function(weights, tokens[:, :-1])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits)

    def token_losses(weights: Weights, tokens: Any) -> tf.Tensor:
        stacked = tf.convert_to_tensor(tokens).shape.rank == 3
        return _map_over_clients(client_losses, (weights, tokens)) if stacked else client_losses((weights, tokens))

    return token_losses


def _map_over_clients(function: Callable[[Any], tf.Tensor], arguments: Any) -> tf.Tensor:
    return tf.vectorized_map(function, arguments, fallback_to_while_loop=False)


class _Function:
    """Calls a checked model as a pure function of its weights, traced once.

    The function is traced when the object is built, outside TFF's graphs. Inside them, Keras would switch its classes,
    and with them the user's model, to those of TensorFlow 1.
    """

    def __init__(self, model: keras.Model) -> None:
        _check(model)
        self.model = model
        self.variables = _name_variables(model)
        order = _find_creation_order(model, self.variables)

        def call(weights: Weights, x: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
            names = iter(order)

            def creator(next_creator: Callable[..., Any], **settings: Any) -> Any:
                # A variable that is not trainable is not a weight, but state that Keras creates for a layer.
                return weights[next(names)] if settings.get("trainable", True) else next_creator(**settings)

            clone = _clone(model, creator)
            # The identity drops the mask that Keras attaches: stock tff.learning's function call drops it, too.
            return tf.identity(clone(x, training=True)), clone.losses

        specs = {name: tf.TensorSpec(variable.shape, variable.dtype) for name, variable in self.variables.items()}
        x = tf.TensorSpec(model.input_shape, model.inputs[0].dtype)
        try:
            self._traced = tf.function(call, autograph=False).get_concrete_function(specs, x)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ValueError(
                f"model {model.name} cannot be made a function of its weights ({short(error)}): avoid layers that "
                "create variables when they are called, such as random and stateful ones"
            ) from error
        traced = self._traced.graph.as_graph_def()
        nodes = list(chain(traced.node, *(inner.node_def for inner in traced.library.function)))
        self.penalties = len(self._traced.structured_outputs[1])
        self._loops = any(node.op in ("While", "StatelessWhile") for node in nodes)
        if python := [node.name for node in nodes if "PyFunc" in node.op]:
            raise ValueError(
                f"model {model.name} calls Python ({python[0]}), which a worker cannot do: use TensorFlow operations"
            )
        if draws := [node.name for node in nodes if re.search("Random|Rng|Multinomial", node.op)]:
            raise ValueError(
                f"model {model.name} draws random numbers while it trains ({draws[0]}), so that a repeated round would "
                "differ: remove its dropout and noise layers"
            )

    def __call__(self, weights: Weights, x: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the model's output with the tensors `weights` for its weights, and its regularisation losses."""
        predictions, penalties = self._traced(dict(weights), x)
        return predictions, penalties

    def loops_over_time(self) -> str | None:
        """Returns the reason against stacking if layers loop over time, else None.

        TFF's worker fails on such loops if they are computed for stacked clients.
        """
        return "its layers loop over time: set unroll=True on keras.layers.LSTM and the like" if self._loops else None


def _name_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Names the variables by position, without the numbers that Keras counts up in each process (as in "dense_7")."""
    names = [re.sub(r"_\d+(?=/)|:0$", "", variable.name) for variable in model.trainable_variables]
    return {f"{i:03}_{names[i]}": variable for i, variable in enumerate(model.trainable_variables)}


def _find_creation_order(model: keras.Model, variables: dict[str, tf.Variable]) -> list[str]:
    """Returns the names in the order in which a clone asks for its variables."""
    created: list[tf.Variable] = []

    def creator(next_creator: Callable[..., Any], **settings: Any) -> tf.Variable:
        created.append(next_creator(**settings))
        return created[-1]

    names = dict(zip(map(id, _clone(model, creator).trainable_variables), variables, strict=True))
    return [names.pop(id(variable)) for variable in created if id(variable) in names]


def _clone(model: keras.Model, creator: Callable[..., Any]) -> keras.Model:
    """Returns a copy of the model whose variables `creator` creates; see `tf.variable_creator_scope`."""
    with contextlib.ExitStack() as scopes:
        # Keras lifts the creation of variables out of the function that is traced, so both scopes need the creator.
        with tf.init_scope():
            scopes.enter_context(tf.variable_creator_scope(creator))
        scopes.enter_context(tf.variable_creator_scope(creator))
        try:
            return keras.models.clone_model(model)
        except (NotImplementedError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"model {model.name} cannot be cloned: give its layers a get_config ({reason})") from error


def _is_number(dtype: tf.DType) -> bool:
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool)


def _check(model: keras.Model) -> None:
    """Raises ValueError, whose message says what to change, if the engines cannot train the model."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"model is {model!r}: give a keras.Model")
    fault = None
    if not model.built:
        fault = "is not built: begin it with a keras.Input"
    elif not model.inputs:
        fault = "is subclassed: build it with keras.Sequential or from a keras.Input"
    elif len(model.inputs) != 1 or len(model.outputs) != 1:
        fault = f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs: give it one of each"
    elif None in model.input_shape[1:]:
        fault = f"has the input shape {model.input_shape}: give keras.Input every size but the batch's"
    elif not _is_number(model.inputs[0].dtype):
        fault = f"takes inputs of type {model.inputs[0].dtype.name}: convert them to numbers before the model"
    elif half := [layer.name for layer in model.submodules if getattr(layer, "compute_dtype", "") in _HALF]:
        fault = f"computes in half precision (layer {half[0]}): build its layers with dtype='float32'"
    elif stateful := [layer.name for layer in model.submodules if getattr(layer, "stateful", False)]:
        fault = f"keeps state from one batch to the next (layer {stateful[0]}): build that layer with stateful=False"
    elif model.non_trainable_variables:
        name = model.non_trainable_variables[0].name
        fault = f"has weights that are not trained ({name}): use group, not batch normalisation, and freeze no layer"
    elif not model.trainable_variables:
        fault = "has no weights: add a layer that can be trained"
    elif other := [variable.name for variable in model.trainable_variables if variable.dtype != tf.float32]:
        fault = f"has weights that are not float32 ({other[0]}): build its layers with dtype='float32'"
    if fault:
        raise ValueError(f"model {model.name} {fault}")


def _log_stacking(model: keras.Model, reason: str | None) -> bool:
    """Logs the reason against stacking, if there is one; returns whether the model can be stacked."""
    if reason:
        log.warning("model %s: clients are trained one after another, not stacked: %s", model.name, reason)
    return reason is None

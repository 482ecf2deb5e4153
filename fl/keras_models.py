"""Your own Keras model in the engines: a functional or Sequential `keras.Model` as pure functions of its weights.

A model is called on weights that are tensors by cloning it and answering its requests for variables, one by one, with
those tensors; the clone lives for the length of a trace. As in stock `tff.learning`, a mask that layers hand on (for
instance of `Embedding(mask_zero=True)`) does not reach the loss.

Refused are models with weights that are not trained (the moving averages of batch normalisation among them: use group
or layer normalisation) and models that draw random numbers while they train (dropout, noise): those draws have no key,
so that a round that is repeated after a crash would release another result under the same noise.
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
    """The model's weights, float32 arrays, by number, layer and name: "000_dense/kernel", "001_dense/bias" and so on.

    Raises:
      ValueError: the model cannot be trained by the engines; the line says what to change.
    """
    return {name: variable.numpy() for name, variable in _Function(model).variables.items()}


def assign(model: keras.Model, weights: Weights) -> None:
    """Puts weights, named as by `initial_weights`, into the model.

    Raises:
      ValueError: a name is missing or unknown, or a shape differs.
    """
    variables = _named(model)
    if set(weights) != set(variables):
        raise ValueError(f"weights: names {sorted(weights)} are not the model's, {sorted(variables)}")
    for name, variable in variables.items():
        if np.shape(weights[name]) != tuple(variable.shape):
            raise ValueError(
                f"weights: {name} has shape {np.shape(weights[name])}, the model's {tuple(variable.shape)}"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


@dataclass(frozen=True)
class KerasTask:
    """A `fl.local_training.Task`: a Keras model with a Keras loss on examples (x, y), as stock `tff.learning` has it.

    A batch's loss is `loss(y, model(x))` with the model's regularisation losses added. Of a client's examples give
    `LocalSGD.batches` the pair of arrays (x [n, ...], y [n, ...]).

    Attributes:
      model: a built functional or Sequential model of one input of known shape and one output.
      loss: averages (or sums) over the batch.
      label: of one example's y, without batch axis, for instance `tf.TensorSpec([], tf.int32)`.

    Raises:
      ValueError: the model cannot be trained by the engines; the line says what to change.
    """

    model: keras.Model
    loss_function: keras.losses.Loss
    label: tf.TensorSpec

    def __post_init__(self) -> None:
        if not isinstance(self.loss_function, keras.losses.Loss):
            raise ValueError(
                f"loss is {self.loss_function!r}: give an object of keras.losses, such as MeanSquaredError()"
            )
        if self.loss_function.reduction == keras.losses.Reduction.NONE:
            raise ValueError(f"loss {self.loss_function.name} has reduction 'none': SGD needs one number, use 'auto'")
        if not isinstance(self.label, tf.TensorSpec):
            raise ValueError(
                f"label is {self.label!r}: give the form of one example's y, as tf.TensorSpec([], tf.int32)"
            )
        if not (self.label.shape.is_fully_defined() and _is_number(self.label.dtype)):
            raise ValueError(
                f"label is {self.label!r}: numbers of a known shape are needed, as tf.TensorSpec([], tf.int32)"
            )
        self._function  # noqa: B018 - refuses a model now

    @cached_property
    def _function(self) -> "_Function":
        return _Function(self.model)

    @property
    def example(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """(x, y) without batch axis."""
        return tf.TensorSpec(self.model.input_shape[1:], self.model.inputs[0].dtype), self.label

    @property
    def measures_accuracy(self) -> bool:
        """No: what is right depends on the task."""
        return False

    @cached_property
    def stacks(self) -> bool:
        """Whether users can be trained stacked; tried once on made-up data, and said in the log where they cannot."""
        return _said(self.model, self._why_not_stacked())

    def _why_not_stacked(self) -> str | None:
        usual = (keras.losses.Reduction.AUTO, keras.losses.Reduction.SUM_OVER_BATCH_SIZE)
        if self.loss_function.reduction not in usual:
            return f"the loss's reduction is {self.loss_function.reduction!r}"
        with contextlib.suppress(NotImplementedError):
            if self.loss_function.get_config().get("ignore_class") is not None:
                return "the loss has an ignore_class"
        return self._function.loops_over_time() or why_not_stacked(self, initial_weights(self.model))

    def forms(self, batch: Any) -> tuple[int, list[Any]]:
        """As it is."""
        return 0, [batch]

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """Rows times the batch's loss, and rows; see `fl.local_training.Task.loss`."""
        x, y = batch
        count = tf.cast(rows, tf.float32)
        if count.shape.rank == 0:
            predictions, penalties = self._function(weights, x)
            return Loss(count * tf.add_n([self.loss_function(y, predictions), *penalties]), count)

        def of_a_user(arguments: Any) -> tf.Tensor:
            weights, x, y, rows = arguments
            size = tf.shape(x)[0]
            predictions, penalties = self._function(weights, x)
            mean = self.loss_function(y, predictions, sample_weight=tf.sequence_mask(rows, size, tf.float32))
            return tf.cast(size, tf.float32) * mean + tf.cast(rows, tf.float32) * sum(penalties)

        return Loss(_over_users(of_a_user, (weights, x, y, rows)), count)


def language_modelling(model: keras.Model) -> LanguageModelling:
    """The task of a Keras language model: tokens int32 [B, T] -> logits [B, T, V]; logits t are for token t + 1.

    Padding (token 0) is no target; T is that of the model's input. Examples are token sequences, as for the models of
    the kit, and the weights are `initial_weights(model)`.

    Raises:
      ValueError: the model cannot be trained by the engines; the line says what to change.
    """
    function = _Function(model)
    if len(model.output_shape) != 3 or len(model.input_shape) != 2:
        shapes = f"{model.input_shape} -> {model.output_shape}"
        raise ValueError(
            f"model {model.name} maps {shapes}: tokens [batch, T] -> logits [batch, T, vocabulary] are needed"
        )
    if function.penalties:
        raise ValueError(f"model {model.name} has regularisation losses, which are no token's: take them out of it")
    task = LanguageModelling(_token_losses(function), model.input_shape[1])
    reason = function.loops_over_time() or why_not_stacked(task, initial_weights(model))
    return LanguageModelling(task.token_losses, task.sequence_length, stacks=_said(model, reason))


def _token_losses(function: "_Function") -> TokenLosses:
    def of_a_user(arguments: Any) -> tf.Tensor:
        weights, tokens = arguments
        logits, _ = function(weights, tokens[:, :-1])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits)

    def token_losses(weights: Weights, tokens: Any) -> tf.Tensor:
        stacked = tf.convert_to_tensor(tokens).shape.rank == 3
        return _over_users(of_a_user, (weights, tokens)) if stacked else of_a_user((weights, tokens))

    return token_losses


def _over_users(function: Callable[[Any], tf.Tensor], arguments: Any) -> tf.Tensor:
    return tf.vectorized_map(function, arguments, fallback_to_while_loop=False)


class _Function:
    """A checked model as a pure function of its weights, traced once: TFF's own graphs would turn Keras's classes, and
    the user's model with them, into those of TensorFlow 1."""

    def __init__(self, model: keras.Model) -> None:
        _check(model)
        self.model = model
        self.variables = _named(model)
        order = _order_of_creation(model, self.variables)

        def call(weights: Weights, x: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
            waiting = iter(order)

            def creator(next_creator: Callable[..., Any], **settings: Any) -> Any:
                # What is not trained is no weight, but state that Keras makes for a layer that does not use it.
                return weights[next(waiting)] if settings.get("trainable", True) else next_creator(**settings)

            clone = _clone(model, creator)
            # Without the mask that Keras attaches: stock tff.learning calls models through a function, which drops it.
            return tf.identity(clone(x, training=True)), clone.losses

        specs = {name: tf.TensorSpec(variable.shape, variable.dtype) for name, variable in self.variables.items()}
        x = tf.TensorSpec(model.input_shape, model.inputs[0].dtype)
        try:
            self._traced = tf.function(call, autograph=False).get_concrete_function(specs, x)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ValueError(
                f"model {model.name} cannot be made a function of its weights ({short(error)}): take layers that "
                "make no variables when they are called, such as random or stateful ones do"
            ) from error
        traced = self._traced.graph.as_graph_def()
        nodes = list(chain(traced.node, *(inner.node_def for inner in traced.library.function)))
        self.penalties = len(self._traced.structured_outputs[1])
        self._loops = any(node.op in ("While", "StatelessWhile") for node in nodes)
        if python := [node.name for node in nodes if "PyFunc" in node.op]:
            raise ValueError(
                f"model {model.name} calls Python ({python[0]}), which a worker cannot: use TensorFlow's own"
            )
        if draws := [node.name for node in nodes if re.search("Random|Rng|Multinomial", node.op)]:
            raise ValueError(
                f"model {model.name} draws random numbers while it trains ({draws[0]}), so that a repeated round would "
                "differ: take dropout and noise out of it"
            )

    def __call__(self, weights: Weights, x: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The model's output on the tensors `weights`, and its regularisation losses."""
        predictions, penalties = self._traced(dict(weights), x)
        return predictions, penalties

    def loops_over_time(self) -> str | None:
        """Why that speaks against stacking; None if it does not loop. Vectorised, TFF's worker fails on such loops."""
        return "its layers loop over time: give keras.layers.LSTM and the like unroll=True" if self._loops else None


def _named(model: keras.Model) -> dict[str, tf.Variable]:
    """The same names whenever the model is made: Keras numbers layers through, "dense_7" being the process's eighth."""
    names = [re.sub(r"_\d+(?=/)|:0$", "", variable.name) for variable in model.trainable_variables]
    return {f"{i:03}_{names[i]}": variable for i, variable in enumerate(model.trainable_variables)}


def _order_of_creation(model: keras.Model, variables: dict[str, tf.Variable]) -> list[str]:
    """The names in the order in which a clone asks for its variables."""
    made: list[tf.Variable] = []

    def creator(next_creator: Callable[..., Any], **settings: Any) -> tf.Variable:
        made.append(next_creator(**settings))
        return made[-1]

    names = dict(zip(map(id, _clone(model, creator).trainable_variables), variables, strict=True))
    return [names.pop(id(variable)) for variable in made if id(variable) in names]


def _clone(model: keras.Model, creator: Callable[..., Any]) -> keras.Model:
    """A copy of the model whose variables `creator` makes; see `tf.variable_creator_scope`."""
    with contextlib.ExitStack() as scopes:
        # Keras lifts the creation of variables out of the function that is traced.
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
    if not isinstance(model, keras.Model):
        raise ValueError(f"model is {model!r}: give a keras.Model")
    fault = None
    if not model.built:
        fault = "is not built: begin it with a keras.Input"
    elif not model.inputs:
        fault = "is subclassed: make it with keras.Sequential or from a keras.Input"
    elif len(model.inputs) != 1 or len(model.outputs) != 1:
        fault = f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs: one of each is needed"
    elif None in model.input_shape[1:]:
        fault = f"has the input shape {model.input_shape}: give keras.Input every size but the batch's"
    elif not _is_number(model.inputs[0].dtype):
        fault = f"takes inputs of {model.inputs[0].dtype.name}: look texts up before, and give it their numbers"
    elif half := [layer.name for layer in model.submodules if getattr(layer, "compute_dtype", "") in _HALF]:
        fault = f"computes in half precision (layer {half[0]}): make its layers with dtype='float32'"
    elif stateful := [layer.name for layer in model.submodules if getattr(layer, "stateful", False)]:
        fault = f"keeps state from one batch to the next (layer {stateful[0]}): make it without stateful"
    elif model.non_trainable_variables:
        name = model.non_trainable_variables[0].name
        fault = f"has weights that are not trained ({name}): use group for batch normalisation, and freeze no layer"
    elif not model.trainable_variables:
        fault = "has no weights: there is nothing to train"
    elif other := [variable.name for variable in model.trainable_variables if variable.dtype != tf.float32]:
        fault = f"has weights that are not float32 ({other[0]}): make its layers with dtype='float32'"
    if fault:
        raise ValueError(f"model {model.name} {fault}")


def _said(model: keras.Model, reason: str | None) -> bool:
    if reason:
        log.warning("model %s: clients are trained one after another, not stacked: %s", model.name, reason)
    return reason is None

"""Replaces TFF's remote executor by one that copies a nested value into its message once, not once for each level.

TFF builds the message of a nested value from the leaves up and copies every part into the part that encloses it. For a
state of 38 MB this takes a third of a second in each round, and for a moment ten times the memory of the state.
"""

import contextlib
from typing import Any

import tensorflow_federated as tff
import grpc
import numpy as np
from tensorflow_federated.proto.v0 import executor_pb2
from tensorflow_federated.python.core.impl.compiler import array
from tensorflow_federated.python.core.impl.executors.remote_executor import RemoteValue
from tensorflow_federated.python.core.impl.types import array_shape, dtype_utils, type_serialization

from fl.runtime.owned_process import WorkerLostError


class RemoteExecutor(tff.framework.RemoteExecutor):
    """Sends the same bytes as TFF's own remote executor, with fewer copies."""

    async def create_value(self, value: Any, type_spec: Any = None) -> Any:
        """Creates a value on the worker; computations are sent by TFF's own code."""
        if not isinstance(type_spec, tff.FederatedType):
            return await super().create_value(value, type_spec)
        self._check_has_executor_id()
        request = executor_pb2.CreateValueRequest(executor=self._executor_id)
        _write(request.value, value, type_spec)
        response = self._stub.create_value(request)
        return RemoteValue(response.value_ref, type_spec, self)

    def _dispose(self, value_ref: Any, value_executor_id: Any) -> None:
        """Frees a value on the worker. Finalizers call this at any time; if the connection is gone, so is the value."""
        # ValueError: this process has closed the channel.
        connection_errors = (WorkerLostError, ValueError, grpc.RpcError, tff.framework.RetryableError)
        with contextlib.suppress(*connection_errors):
            super()._dispose(value_ref, value_executor_id)


def _write(message: Any, value: Any, type_spec: Any) -> None:
    """Writes a value into an `executor_pb2.Value` in place; if the value is of another type, TFF raises the error."""
    match type_spec:
        case tff.FederatedType() if type_spec.all_equal or isinstance(value, list):
            federated = message.federated
            federated.type.CopyFrom(type_serialization.serialize_type(type_spec).federated)
            for member in [value] if type_spec.all_equal else value:
                _write(federated.value.add(), member, type_spec.member)
        case tff.StructType() if len(parts := tff.structure.from_container(value)) == len(type_spec):
            struct = message.struct
            struct.SetInParent()  # marks the struct as present even if it has no element
            for (name, part_type), part in zip(tff.structure.iter_elements(type_spec), parts, strict=True):
                element = struct.element.add()
                if name:
                    element.name = name
                _write(element.value, part, part_type)
        case tff.TensorType() if _is_plain(value, type_spec):
            message.array.dtype = dtype_utils.to_proto(type_spec.dtype.type)
            message.array.shape.CopyFrom(array_shape.to_proto(value.shape))
            message.array.content = value.tobytes()
        case _:
            leaf, _ = tff.framework.serialize_value(value, type_spec)
            message.MergeFrom(leaf)


def _is_plain(value: Any, type_spec: tff.TensorType) -> bool:
    """Returns whether the value is an array of exactly this type; TFF converts or refuses all other values."""
    if not isinstance(value, np.ndarray) or value.ndim == 0 or value.dtype.kind not in "biuf":
        return False
    return value.dtype == type_spec.dtype and array.is_compatible_shape(value, type_spec.shape)

"""Tests that the remote executor sends a worker the same bytes as TFF's own executor."""

import asyncio
import gc
from collections import OrderedDict

import tensorflow_federated as tff
import grpc
import numpy as np
import pytest
from tensorflow_federated.proto.v0 import executor_pb2

from fl.runtime.remote_executor import RemoteExecutor

MODEL = tff.types.to_type(OrderedDict(a=tff.TensorType(np.float32, (2, 3)), b=tff.TensorType(np.float32, (4,))))
WEIGHTS = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.full(4, np.nan, np.float32))


class Recorded:
    """A stub that records the requests."""

    def __init__(self):
        self.requests = []

    def get_executor(self, request):
        return executor_pb2.GetExecutorResponse(executor=executor_pb2.ExecutorId(id="x"))

    def create_value(self, request):
        self.requests.append(request)
        return executor_pb2.CreateValueResponse(value_ref=executor_pb2.ValueRef(id="v"))

    def dispose(self, request):
        pass


def send(kind, value, type_spec):
    stub = Recorded()
    executor = kind(stub)
    executor.set_cardinalities({tff.CLIENTS: 2})
    reference = asyncio.run(executor.create_value(value, type_spec))
    assert reference.type_signature.is_equivalent_to(type_spec)
    return stub.requests[0].SerializeToString(deterministic=True)


VALUES = {
    "a state with an empty part": (
        OrderedDict(weights=WEIGHTS, empty=OrderedDict(), scalar=np.float32(2)),
        tff.FederatedType(OrderedDict(weights=MODEL, empty=OrderedDict(), scalar=np.float32), tff.SERVER),
    ),
    "clients of any number of steps": (
        [OrderedDict(x=np.ones((n, 2), np.int32), ok=np.ones(n, np.bool_)) for n in (0, 3)],
        tff.FederatedType(
            OrderedDict(x=tff.TensorType(np.int32, (None, 2)), ok=tff.TensorType(np.bool_, (None,))), tff.CLIENTS
        ),
    ),
    "no client": ([], tff.FederatedType(np.float32, tff.CLIENTS)),
    "seeds": (np.array([0, 7], np.int64), tff.FederatedType(tff.TensorType(np.int64, (2,)), tff.SERVER)),
    "a list for an array": ([1.0, 2.0], tff.FederatedType(tff.TensorType(np.float32, (2,)), tff.SERVER)),
    "not in C order": (np.ones((3, 2), np.float32).T, tff.FederatedType(MODEL["a"], tff.SERVER)),
    "text": ("words", tff.FederatedType(np.str_, tff.SERVER)),
    "without names": ((WEIGHTS["a"], WEIGHTS["b"]), tff.FederatedType(MODEL, tff.SERVER)),
    "without placement": (WEIGHTS, MODEL),
}


@pytest.mark.parametrize("case", VALUES)
def test_remote_executor_sends_same_bytes_as_tff(case):
    assert send(RemoteExecutor, *VALUES[case]) == send(tff.framework.RemoteExecutor, *VALUES[case])


ON_SERVER, ON_CLIENTS = tff.FederatedType(MODEL["a"], tff.SERVER), tff.FederatedType(MODEL["a"], tff.CLIENTS)


@pytest.mark.parametrize(
    ("value", "type_spec"),
    [
        (np.zeros((3, 3), np.float32), ON_SERVER),
        (np.zeros((2, 3), np.int64), ON_SERVER),
        (np.zeros((2, 3), np.complex64), ON_SERVER),
        ((WEIGHTS["a"],), ON_CLIENTS),
        (OrderedDict(a=WEIGHTS["a"]), tff.FederatedType(MODEL, tff.SERVER)),
    ],
)
def test_remote_executor_refuses_values_of_other_type_as_tff_does(value, type_spec):
    with pytest.raises(TypeError) as theirs:
        send(tff.framework.RemoteExecutor, value, type_spec)
    with pytest.raises(TypeError) as ours:
        send(RemoteExecutor, value, type_spec)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("error", [ValueError("Cannot invoke RPC on closed channel!"), grpc.RpcError()])
def test_remote_executor_frees_value_silently_without_connection(error):
    """This happens when Ctrl-C ends a round; pytest reports an exception in a finalizer as a failure."""

    class Gone(Recorded):
        def dispose(self, request):
            raise error

    executor = RemoteExecutor(Gone(), dispose_batch_size=1)
    executor.set_cardinalities({})
    value = asyncio.run(executor.create_value([], tff.FederatedType(np.float32, tff.CLIENTS)))
    del value
    gc.collect()

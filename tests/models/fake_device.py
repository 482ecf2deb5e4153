"""A device's model whose signatures are plain functions: every block accepts one drafted token."""

from collections.abc import Callable
from typing import Any

import numpy as np

from models import tflite_file
from models.device import DeviceModel
from models.device_signatures import signature_name
from tests.models import exported

FIRST_DRAFTER, FIRST_TARGET = (np.zeros(269, np.float32) for _ in range(2))
FIRST_DRAFTER[100:103], FIRST_TARGET[100:103] = (0.5, 0.3, 0.2), (0.1, 0.3, 0.6)
TOKENS = [100, 101]


class Signature:
    """Stands for a signature of the runtime: a function with the shapes of its inputs."""

    def __init__(self, function: Callable[..., dict[str, Any]]) -> None:
        self.function = function

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        return self.function(**inputs)

    def get_input_details(self) -> dict[str, Any]:
        return {"tokens": {}, "state_0": {"shape": [1], "dtype": np.int32}}


def fake(decoding: str, num_drafts: int, called: Callable[[str], None] = lambda kind: None) -> DeviceModel:
    """Returns a model with a decoding; `called` gets the kind of each signature that is called."""

    def read(tokens: Any, length: Any, begins_here: Any, ends_here: Any, state_0: Any) -> dict[str, Any]:
        called("read")
        return {"state_0": state_0 + length}

    def block(state_0: Any, **inputs: Any) -> dict[str, Any]:
        called("block")
        row = np.zeros([1, 2], np.float32)
        first = {"first_target": FIRST_TARGET[np.newaxis], "first_drafter": FIRST_DRAFTER[np.newaxis]}
        counts = {"count": np.array([2]), "drafted": np.array([1])}
        outputs = {"tokens": np.array([TOKENS]), "log_probs": row, "unprocessed_log_probs": row, **counts}
        return {**outputs, **(first if decoding == "spectr" else {}), "state_0": state_0 + 2}

    def generate(max_new: Any, **inputs: Any) -> dict[str, Any]:
        called("generate")
        blocks = -(-int(max_new) // 2)
        row, places = np.zeros([1, 2 * blocks], np.float32), np.array([[blocks]])
        counts = {"calls": np.array([blocks]), "decided": np.array([2 * blocks])}
        counts |= {"drafted": places, "reached": places, "accepted": places}
        tokens = {"tokens": np.array([TOKENS * blocks]), "lengths": np.array([int(max_new)])}
        return {**tokens, "log_probs": row, "unprocessed_log_probs": row, **counts}

    model = object.__new__(DeviceModel)
    model.path, model.vocabulary = "fake.tflite", exported.vocabulary()
    model.facts = tflite_file.Facts(
        "float32",
        {"vocabulary_size": model.vocabulary.size},
        max_prompt=8,
        max_new_tokens=16,
        state_shapes=[],
        flatbuffer_bytes=0,
        flatbuffer_sha256="",
        decodings=[decoding],
        draft_length=1,
        num_drafts=num_drafts,
    )
    kinds: dict[str, Any] = {"read": read, "block": block, "generate": generate}
    model._signatures = {signature_name(kind, decoding): Signature(one) for kind, one in kinds.items()}
    model._start = {"state_0": np.zeros([1], np.int32)}
    return model

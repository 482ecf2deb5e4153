import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import device_costs
from models.decoding.choices import Costs


class _FakeFile:
    """A model file whose loop takes known times: `target`, `draft` and `verify` seconds, and `prompt` for a prompt.

    As the real loop, it drafts none, one or G tokens, by the costs. It yields one token per block, so that a call of
    the target is a token.
    """

    path = "m.tflite"
    vocabulary = SimpleNamespace(start=1)

    def __init__(self, clock, automatic=True, target=2.0, nothing=0.4, draft=0.3, verify=5.0, prompt=7.0, pause=()):
        self.facts = SimpleNamespace(
            automatic=automatic, draft_length=3, max_new_tokens=11, flatbuffer_sha256="abc", decodings=["block"]
        )
        self.clock, self.target, self.draft, self.verify, self.prompt = clock, target, draft, verify, prompt
        self.nothing = nothing
        self.calls: list[Any] = []
        self.pauses = dict(pause)

    def draw_in_graph(self, prompt, choices, *, decoding, costs):
        blocks = choices.max_new_tokens
        if decoding == "autoregressive":
            block = self.target
        else:
            speeds = [1 / costs.nothing, *((k + 1) / (costs.verify + k * costs.draft) for k in range(1, 4))]
            length = int(np.argmax(speeds))
            block = self.verify + length * self.draft if length else self.target + self.nothing
        self.clock.now += self.prompt + blocks * block + self.pauses.get(len(self.calls), 0.0)
        self.calls.append((decoding, blocks))
        return {"calls": np.array(blocks)}


FakeFile: Any = _FakeFile


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(device_costs, "time", own)
    return own


def test_measured_costs_are_the_times_in_units_of_one_token_without_the_prompt(clock):
    found = device_costs.measure(FakeFile(clock), "block")
    assert tuple(found) == pytest.approx((2.4 / 2, 5.0 / 2, 0.3 / 2))


def test_a_pause_of_the_machine_does_not_change_the_costs(clock):
    found = device_costs.measure(FakeFile(clock, pause={17: 100.0, 26: 50.0}), "block")
    assert tuple(found) == pytest.approx((1.2, 2.5, 0.15))


def test_first_measurement_does_not_count(clock):
    """It warms up. Three pauses in the other seven leave the median as it is; a fourth would not."""
    file = FakeFile(clock, pause={7: 100.0, 15: 100.0, 23: 100.0, 31: 100.0})
    assert tuple(device_costs.measure(file, "block")) == pytest.approx((1.2, 2.5, 0.15))
    assert {decoding for decoding, _ in file.calls} == {"autoregressive", "block"}
    assert len(file.calls) == 2 * 4 * 8


def test_times_that_fall_with_longer_drafts_give_costs_in_their_range(clock):
    found = device_costs.measure(FakeFile(clock, draft=-0.5, verify=2.0), "block")
    assert found.verify > 0 and found.draft == 0


def test_measure_refuses_a_file_with_fixed_draft_lengths(clock):
    with pytest.raises(ValueError, match="^m.tflite: its draft length is fixed; export it with draft_length auto$"):
        device_costs.measure(FakeFile(clock, automatic=False), "block")


def test_saved_costs_are_read_back(clock, tmp_path):
    file, costs = FakeFile(clock), Costs(1.1, 1.25, 0.0)
    device_costs.save(costs, file, "block", tmp_path / "costs.json")
    assert device_costs.read(tmp_path / "costs.json", file, "block") == costs
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["decoding"] == "block" and content["draft_length"] == 3 and content["runtime"]


def test_costs_of_another_file_are_refused(clock, tmp_path):
    file = FakeFile(clock)
    device_costs.save(Costs(1.1, 1.25, 0.1), file, "block", tmp_path / "costs.json")
    file.facts.flatbuffer_sha256 = "other"
    with pytest.raises(
        ValueError, match="costs.json: measured with another model file, but m.tflite needs 'other'; measure again$"
    ):
        device_costs.read(tmp_path / "costs.json", file, "block")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "fedspeak costs 2"},
        {"verify": 0},
        {"nothing": 0},
        {"nothing": True},
        {"verify": float("nan")},
        {"draft": float("nan")},
        {"draft": -0.1},
        {"verify": float("inf")},
        {"draft": "x"},
        {"draft": None},
        {"flatbuffer_sha256": ...},
        {"verify": ...},
        {"format": ...},
    ],
)
def test_damaged_costs_are_refused_in_one_line(clock, tmp_path, changes):
    path = tmp_path / "costs.json"
    file = FakeFile(clock)
    device_costs.save(Costs(1.1, 1.25, 0.1), file, "block", path)
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match="costs.json: not from `fedspeak costs`, or damaged; measure again$") as caught:
        device_costs.read(path, file, "block")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"\xff\xfe", b"null"])
def test_files_of_another_kind_are_refused_in_one_line(clock, tmp_path, content):
    (tmp_path / "costs.json").write_bytes(content)
    with pytest.raises(ValueError, match="not from `fedspeak costs`, or damaged") as caught:
        device_costs.read(tmp_path / "costs.json", FakeFile(clock), "block")
    assert "\n" not in str(caught.value)


def test_costs_of_another_decoding_or_draft_length_are_refused(clock, tmp_path):
    path, file = tmp_path / "costs.json", FakeFile(clock)
    device_costs.save(Costs(1.1, 1.25, 0.1), file, "block", path)
    with pytest.raises(ValueError, match="measured with decoding = 'block', but m.tflite needs 'invariant'"):
        device_costs.read(path, file, "invariant")
    file.facts.draft_length = 4
    with pytest.raises(ValueError, match="measured with draft_length = 3, but m.tflite needs 4; measure again$"):
        device_costs.read(path, file, "block")

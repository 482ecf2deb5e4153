from typing import Any

import pytest

from models.decoding.choices import OFF, Choices, Processing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", 1e-9),
        ("temperature", True),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.0001),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.0),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 101.0),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", 100.5),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("-inf")),
        ("frequency_penalty", float("nan")),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2**31),
        ("seed", -1),
        ("seed", 2**64),
        ("request", 2**31),
        ("stop", -2),
    ],
)
def test_choices_refuse_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"^{field} = {value!r}: must be ") as caught:
        Choices(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", 1e-6),
        ("temperature", 1e6),
        ("top_p", 1e-9),
        ("top_p", 1),
        ("min_p", 0.999999),
        ("repetition_penalty", 0.01),
        ("repetition_penalty", 100),
        ("presence_penalty", -100),
        ("frequency_penalty", 100.0),
    ],
)
def test_choices_accept_the_ends_of_the_ranges(field, value):
    assert getattr(Choices(**{field: value}).processing, field) == value


def test_choices_are_off_by_default_and_only_penalties_need_the_text_so_far():
    assert Choices().processing == OFF == Processing(1, 0, 1, 0, 1, 0, 0)
    assert not Choices(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1).has_penalties
    for field in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        penalty: Any = {field: 0.5}
        assert Choices(**penalty).has_penalties

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from models.decoding.choices import OFF, Choices, Costs, Processing, check_costs, check_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", 1e-9),
        ("temperature", True),
        ("temperature", "1"),
        pytest.param("temperature", 10**400, id="beyond float64"),
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
        ("top_p", Fraction(1, 2)),
        ("top_k", np.int64(3)),
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


def test_choices_hold_numpy_integers_as_integers_of_python():
    integers: Any = {"max_new_tokens": np.int64(3), "seed": np.uint64(2**64 - 1)}
    choices = Choices(**integers)
    assert type(choices.max_new_tokens) is int and choices.seed == 2**64 - 1


def test_check_costs_refuses_other_tuples_and_check_ids_names_the_kind_of_id():
    wrong: Any = (1, 1, 1)
    with pytest.raises(ValueError, match="^costs = .1, 1, 1.: must be Costs.nothing, verify, draft.; measure them$"):
        check_costs(wrong)
    assert check_costs(Costs(1, 1, 0)) == (1, 1, 0)
    with pytest.raises(ValueError, match="^requests = .9.: must be one request number or more, integers from 0 to 8$"):
        check_ids("requests", [9], 9, "request number")

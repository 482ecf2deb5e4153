import numpy as np
import pytest

from models.decoding.choices import Processing
from models.decoding.numpy_processing import make_bias, process


def test_make_bias_holds_biased_and_banned_tokens():
    assert make_bias(4) is None and make_bias(4, {}, []) is None
    row = make_bias(4, {0: 1.5, 3: float("-inf")}, [1])
    assert row is not None and row.dtype == np.float32
    np.testing.assert_array_equal(row, np.array([1.5, -np.inf, 0, -np.inf], np.float32))


@pytest.mark.parametrize(
    ("bias", "banned", "message"),
    [
        ({4: 1.0}, [], "bias = 4: must be a token id, an integer from 0 to 3"),
        ({True: 1.0}, [], "bias = True: must be a token id"),
        ({"a": 1.0}, [], "bias = 'a': must be a token id"),
        ({}, [-1], "banned = -1: must be a token id"),
        ({0: float("nan")}, [], "bias = nan for token 0: must be a number from -1e\\+06 to 1e\\+06, or -inf"),
        ({0: float("inf")}, [], "bias = inf for token 0: must be"),
        ({0: -1.1e6}, [], "bias = -1100000.0 for token 0: must be"),
        ({0: "x"}, [], "bias = 'x' for token 0: must be a number"),
        ({0: True}, [], "bias = True for token 0: must be a number"),
        ([1, 2], [], "bias = list: must be a dict from token id to number"),
        (np.zeros(4), [], "bias = ndarray: must be a dict"),
        ({}, 5, "banned = 5: must be a list of token ids"),
        ({}, "5", "banned = '5': must be a list of token ids"),
        ({0: float("-inf")}, [1, 2, 3], "banned = all 4 tokens: must leave at least one token"),
    ],
)
def test_make_bias_refuses_bad_ids_and_numbers_in_one_line(bias, banned, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        make_bias(4, bias, banned)
    assert "\n" not in str(caught.value)


def test_process_refuses_a_row_whose_tokens_are_all_banned():
    bias = np.array([[0, -np.inf], [-np.inf, -np.inf]], np.float32)
    with pytest.raises(ValueError, match="^bias: bans every token of a row; allow at least one token$"):
        process(np.zeros([2, 2], np.float32), Processing(), bias=bias)

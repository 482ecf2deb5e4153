import json
import math

import numpy as np

from privacy.json_values import plain


def test_plain_replaces_numpy_numbers_and_values_that_are_not_finite():
    values = {"a": [np.float32(0.5), math.nan, (math.inf, {"b": -math.inf})], "n": np.int64(3), "t": True, "s": "NaN"}
    text = json.dumps(plain(values), allow_nan=False)
    assert json.loads(text) == {"a": [0.5, None, [None, {"b": None}]], "n": 3, "t": True, "s": "NaN"}

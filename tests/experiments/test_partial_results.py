"""Results of interrupted studies are taken up only where they answer the same question."""

import numpy as np
import pytest

from experiments.partial_results import digest, resume
from experiments.runs import write_json


def test_results_so_far_are_taken_up(tmp_path):
    path = tmp_path / "metrics.json"
    assert resume(path, {"seed": 1}, {"rows": []}) == {"seed": 1, "rows": []}
    write_json(path, {"seed": 1, "rows": [3], "command": "x"})
    assert resume(path, {"seed": 1}, {"rows": []}) == {"seed": 1, "rows": [3], "command": "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [({"seed": 2, "rows": []}, "holds results of another seed: give another --output"), ({"seed": 1}, "is damaged")],
)
def test_other_and_damaged_results_are_refused_in_one_line(tmp_path, content, message):
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(ValueError, match=message) as error:
        resume(tmp_path / "metrics.json", {"seed": 1}, {"rows": []})
    assert "\n" not in str(error.value)


def test_digest_tells_values_names_and_the_rest_apart():
    one = {"a": np.array([1.0]), "b": np.array([2.0])}
    swapped = {"a": np.array([2.0]), "b": np.array([1.0])}
    found = [digest(one, 0), digest(swapped, 0), digest(one, 1), digest({"a": one["a"], "c": one["b"]}, 0)]
    assert len(set(found)) == 4 and digest(dict(reversed(one.items())), 0) == found[0]

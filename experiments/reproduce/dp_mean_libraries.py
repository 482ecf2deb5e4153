"""Runs the private means of other libraries for `fedspeak reproduce dp-mean`, in an environment of their own.

It is run as a script and imports nothing of fedspeak. Each argument is a case `n,epsilon,mu,trials`. For each case and
library it prints a line of JSON with the errors of the trials, or with what went wrong ("problem").
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np


def google(values: list[float], epsilon: float) -> Callable[[], float]:
    """Returns a function that releases the mean by BoundedMean of python-dp, the wrapper of Google's C++ library."""
    from pydp.algorithms.laplacian import BoundedMean

    return lambda: float(
        BoundedMean(epsilon=epsilon, lower_bound=0.0, upper_bound=1.0, dtype="float").quick_result(values)
    )


def opendp(values: list[float], epsilon: float) -> Callable[[], float]:
    """Returns a function that releases the mean by OpenDP for data of unknown size.

    It is a private sum divided by a private count, each with half of ε, combined as in OpenDP's guide.
    """
    import opendp.prelude as dp

    dp.enable_features("contrib", "floating-point")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.symmetric_distance()
    clamped = space >> dp.t.then_clamp(bounds=(0.0, 1.0))
    total = clamped >> dp.t.then_sum() >> dp.m.then_laplace(2 / epsilon)
    count = space >> dp.t.then_count() >> dp.m.then_laplace(2 / epsilon)
    return lambda: min(max(total(values) / max(count(values), 1), 0.0), 1.0)


def diffprivlib(values: list[float], epsilon: float) -> Callable[[], float]:
    """Returns a function that releases the mean by IBM's diffprivlib.

    There the number of records is public, so its ε holds under replace-one.
    """
    from diffprivlib.tools import mean

    array = np.array(values)
    return lambda: float(mean(array, epsilon=epsilon, bounds=(0.0, 1.0)))


LIBRARIES = (
    ("python-dp", "Google's BoundedMean", "add-or-remove-one", google),
    ("opendp", "OpenDP, sum / count", "add-or-remove-one", opendp),
    ("diffprivlib", "diffprivlib mean", "replace-one", diffprivlib),
)


def main() -> None:
    """Prints one line of JSON for each case and library."""
    warnings.simplefilter("ignore")
    for text in sys.argv[1:]:
        n, epsilon, mu, trials = (float(part) for part in text.split(","))
        ones = round(mu * n)
        values = [1.0] * ones + [0.0] * (int(n) - ones)
        for package, name, relation, make in LIBRARIES:
            line: dict[str, Any] = {"package": package, "name": name, "relation": relation}
            line |= {"n": int(n), "epsilon": epsilon, "mu": mu}
            try:
                release = make(values, epsilon)
                begin = time.perf_counter()
                means = np.array([release() for _ in range(int(trials))])
                line |= {
                    "version": version(package),
                    "seconds": (time.perf_counter() - begin) / trials,
                    "errors": (n * (means - mu)).tolist(),
                }
            except Exception as error:  # a failure of one library must not stop the others
                line["problem"] = f"{type(error).__name__}: {error}"[:200]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

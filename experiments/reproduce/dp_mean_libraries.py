"""Other libraries' private means, in an environment of their own.

Run as a script by `fedspeak reproduce dp-mean`; imports nothing of this kit. An argument is a case n,epsilon,mu,trials;
for each, and each library, a line of JSON is printed.
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
    """python-dp, the wrapper of Google's C++ library: BoundedMean."""
    from pydp.algorithms.laplacian import BoundedMean

    return lambda: float(
        BoundedMean(epsilon=epsilon, lower_bound=0.0, upper_bound=1.0, dtype="float").quick_result(values)
    )


def opendp(values: list[float], epsilon: float) -> Callable[[], float]:
    """OpenDP of unknown size: a private sum over a private count, half of ε each, as its guide composes them."""
    import opendp.prelude as dp

    dp.enable_features("contrib", "floating-point")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.symmetric_distance()
    clamped = space >> dp.t.then_clamp(bounds=(0.0, 1.0))
    total = clamped >> dp.t.then_sum() >> dp.m.then_laplace(2 / epsilon)
    count = space >> dp.t.then_count() >> dp.m.then_laplace(2 / epsilon)
    return lambda: min(max(total(values) / max(count(values), 1), 0.0), 1.0)


def diffprivlib(values: list[float], epsilon: float) -> Callable[[], float]:
    """IBM's: the number of records is public, so its ε is of the swap model."""
    from diffprivlib.tools import mean

    array = np.array(values)
    return lambda: float(mean(array, epsilon=epsilon, bounds=(0.0, 1.0)))


LIBRARIES = (
    ("python-dp", "Google's BoundedMean", "add-or-remove-one", google),
    ("opendp", "OpenDP, sum / count", "add-or-remove-one", opendp),
    ("diffprivlib", "diffprivlib mean", "replace-one", diffprivlib),
)


def main() -> None:
    """Prints one line for each library and case."""
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
                found = np.array([release() for _ in range(int(trials))])
                line |= {
                    "version": version(package),
                    "seconds": (time.perf_counter() - begin) / trials,
                    "errors": (n * (found - mu)).tolist(),
                }
            except Exception as error:  # whatever a library does, the others are measured
                line["problem"] = f"{type(error).__name__}: {error}"[:200]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""Runs fairlearn and AIF360 on a table for `fedspeak reproduce cvar-fairness`, in an environment of their own.

It is run as a script and imports nothing of fedspeak. The argument is a JSON file with "features" (columns of texts by
name), "label", "prediction", "permutations" and "seed". Prints one line of JSON for each library.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

_RESAMPLES, _QUANTILES = 100, [0.025, 0.975]
_FRAMES = 2  # each interval of fairlearn takes up to a minute
_PENALTY, _RESTARTS = 1.0, 10


def fairlearn(features: Any, label: Any, prediction: Any, orders: list[Any]) -> dict[str, Any]:
    """Returns the largest gap of MetricFrame to the overall error rate, and its bootstrap interval.

    "permuted_low" holds the lower ends of intervals of tables in which the people's groups were permuted.
    """
    from fairlearn.metrics import MetricFrame

    def error_rate(y_true: Any, y_pred: Any) -> float:
        return float(np.mean(y_true != y_pred))

    def interval(columns: Any) -> tuple[float, float, float]:
        frame = MetricFrame(
            metrics=error_rate,
            y_true=label,
            y_pred=prediction,
            sensitive_features=columns,
            n_boot=_RESAMPLES,
            ci_quantiles=_QUANTILES,
            random_state=0,
        )
        low, high = frame.difference_ci(method="to_overall")
        return float(frame.difference(method="to_overall")), float(low), float(high)

    gap, low, high = interval(features)
    permuted = [interval(features.iloc[order].reset_index(drop=True)) for order in orders[:_FRAMES]]
    return {"gap": gap, "low": low, "high": high, "permuted_low": [values[1] for values in permuted]}


def aif360(features: Any, label: Any, prediction: Any, orders: list[Any]) -> dict[str, Any]:
    """Returns the subgroup with more errors than expected that scores highest in the scan of MDSS.

    "permuted_scores" holds the best scores of tables in which the people's groups were permuted.
    """
    import pandas as pd
    from aif360.detectors import bias_scan

    errors = pd.Series((label != prediction).astype(int))

    def scan(columns: Any) -> tuple[dict[str, list[str]], float]:
        subgroup, score = bias_scan(
            columns, errors, favorable_value=1.0, overpredicted=False, num_iters=_RESTARTS, penalty=_PENALTY
        )
        return {name: sorted(map(str, values)) for name, values in subgroup.items()}, float(score)

    subgroup, score = scan(features)
    chosen = np.ones(len(errors), bool)
    for name, values in subgroup.items():
        chosen &= features[name].isin(values).to_numpy()
    permuted = [scan(features.iloc[order].reset_index(drop=True))[1] for order in orders]
    return {
        "subgroup": subgroup,
        "score": score,
        "rows": int(chosen.sum()),
        "rate": float(errors[chosen].mean()),
        "permuted_scores": permuted,
    }


LIBRARIES: tuple[tuple[str, Callable[..., dict[str, Any]]], ...] = (("fairlearn", fairlearn), ("aif360", aif360))


def main() -> None:
    """Prints one line of JSON for each library."""
    import pandas as pd

    warnings.simplefilter("ignore")
    table = json.loads(Path(sys.argv[1]).read_text())
    features = pd.DataFrame(table["features"])
    label, prediction = np.array(table["label"]), np.array(table["prediction"])
    generator = np.random.default_rng(table["seed"])
    orders = [generator.permutation(len(label)) for _ in range(table["permutations"])]
    for package, run in LIBRARIES:
        line: dict[str, Any] = {"package": package}
        try:
            begin = time.perf_counter()
            line |= {"version": version(package), **run(features, label, prediction, orders)}
            line["seconds"] = time.perf_counter() - begin
        except Exception as error:  # a failure of one library must not stop the other
            line["problem"] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

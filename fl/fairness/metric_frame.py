"""Tests a model's fairness with the interface of fairlearn's `MetricFrame`.

fairlearn itself is not needed, and pandas only by those who give pandas objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.fairness.client_sums import NoisySums
from fl.fairness.columns import Groups, as_column, divide_rows, require_one_group
from fl.fairness.conclusion import FairnessTest
from fl.fairness.features import Table, is_pandas, named_columns, shaped
from fl.fairness.groups import GroupSums, from_counts, from_rows
from fl.fairness.hypothesis_test import attribute_specific_test, holm, weighted_test
from fl.fairness.max_gap import MaxGapTest, max_gap_test
from fl.fairness.named_weights import by_group, with_named
from fl.fairness.noisy_statistic import noisy_test
from fl.fairness.rates import Levels, read_rates
from fl.fairness.row_metrics import metric_name, row_values


class StratumTest(NamedTuple):
    """Holds the tests of one metric in one stratum, a combination of values of the control features.

    Attributes:
      metric: name of the metric.
      stratum: values of the control features; () if there are none.
      sums: sums of each group.
      result: test of whether the groups are alike.
      max_gap: test of the largest gap, and the groups' intervals, for comparison.
      adjusted_p: p-value of `result`, adjusted by Holm's method for the number of tests in the frame.
    """

    metric: str
    stratum: Levels
    sums: GroupSums
    result: FairnessTest
    max_gap: MaxGapTest
    adjusted_p: float

    @property
    def rejects(self) -> bool:
        """Returns whether the groups are shown not to be alike, after the correction for the number of tests."""
        return self.adjusted_p <= self.result.level


class FairnessFrame:
    """Holds a metric's value for every group, and tests of whether the groups are alike.

    The groups are the combinations of values of the sensitive features. With control features there is one test in each
    combination of their values, and with several metrics one for each metric; Holm's method corrects for the number of
    tests. The bounds on F_α are not corrected: each holds by itself.

    Args:
      metrics: a metric or a mapping from name to metric (`fl.fairness.row_metrics`): a name such as "zero_one_loss",
        the function of that name from scikit-learn or fairlearn, or a function that returns one value for each row.
      y_true: labels or targets, [rows].
      y_pred: predictions, [rows].
      sensitive_features: columns whose combinations are the groups: data frame, series, mapping, array or list.
      control_features: columns whose combinations are the strata.
      sample_params: further arguments of functions, by name; for a mapping of metrics by metric and name.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      level: probability of a false rejection, in (0, 0.5).
      gap: gap for which to state the power of the test.
      weights: shares of the groups in the population: "rows" for their shares of the rows, "equal", or a mapping from
        group (a value, or a tuple of values of several features) to weight. The mapping may name groups that have no
        row, and leave out combinations that have none, whose weight is 0.
      probabilities: probability with which a row is of each group, a mapping as for `weights`, if the rows' groups were
        drawn (`fl.fairness.plan_weighted`).
      draws: a column that numbers the draws of groups, if groups were drawn (`fl.fairness.plan_attribute_specific`).
      bounds: least and largest possible value of a row.

    Attributes:
      tests: one `StratumTest` for each metric and stratum.
      groups: the levels of each group, in the order of the arrays in `tests`.
      sensitive_levels: names of the sensitive features.
      control_levels: names of the control features.
      unlisted_groups: number of combinations without rows that are not in `groups` (only beyond 100,000 combinations).

    Raises:
      ValueError: an argument is wrong; one line names it and the fix.
    """

    tests: list[StratumTest]
    groups: list[Levels]
    sensitive_levels: list[str]
    control_levels: list[str]
    unlisted_groups: int

    def __init__(
        self,
        *,
        metrics: Any,
        y_true: Any,
        y_pred: Any,
        sensitive_features: Any,
        control_features: Any = None,
        sample_params: Mapping[str, Any] | None = None,
        alpha: float,
        level: float = 0.05,
        gap: float | None = None,
        weights: str | Mapping[Any, float] = "rows",
        probabilities: Mapping[Any, float] | None = None,
        draws: Any = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if draws is not None and (weights != "rows" or probabilities is not None):
            raise ValueError("draws were made with the groups' weights: leave weights and probabilities out")
        if probabilities is not None and control_features is not None:
            raise ValueError("control_features divide rows that were drawn by group: leave them or probabilities out")
        if isinstance(metrics, Mapping) and not metrics:
            raise ValueError("metrics is empty: give at least one metric")
        if sample_params is not None and not isinstance(sample_params, Mapping):
            raise ValueError(f"sample_params {sample_params!r} are no mapping: give the function's arguments by name")
        division = divide_rows(named_columns(sensitive_features, "sensitive_feature"))
        strata = Groups((), [()], np.zeros(len(division.codes), np.int64))
        if control_features is not None:
            strata = divide_rows(named_columns(control_features, "control_feature"))
        single = not isinstance(metrics, Mapping)
        params = sample_params or {}
        values = {
            str(name): row_values(metric, y_true, y_pred, params if single else params.get(name, {}))
            for name, metric in ({metric_name(metrics): metrics} if single else metrics).items()
        }
        if probabilities is not None and (rate := next((n for n, v in values.items() if np.isnan(v).any()), None)):
            raise ValueError(
                f"metric {rate!r} leaves rows out, whose groups were drawn: the rest does not follow probabilities; "
                "give a metric of all rows"
            )
        draw_codes = _number(draws) if draws is not None else None
        lengths = {"control_features": strata.codes, "draws": draw_codes, "y_true": next(iter(values.values()))}
        for name, column in lengths.items():
            if column is not None and len(column) != len(division.codes):
                raise ValueError(
                    f"{name} has {len(column)} rows and sensitive_features {len(division.codes)}: give one of each for "
                    "every row"
                )
        if draw_codes is not None:
            require_one_group(draw_codes, division)
        names = with_named(division.names, weights, probabilities)
        cases = []
        for name, metric_values in values.items():
            for number, stratum in enumerate(strata.names):
                inside = strata.codes == number
                rows = inside & ~np.isnan(metric_values)
                if inside.any():
                    with _naming(name, stratum):
                        sums = from_rows(metric_values[rows], division.codes[rows], len(names), bounds=bounds)
                        drawn = None
                        if draw_codes is not None:
                            kinds, codes = np.unique(draw_codes[rows], return_inverse=True)
                            drawn = from_rows(metric_values[rows], codes, len(kinds), bounds=bounds)
                    cases.append(_Case(name, stratum, sums, drawn))
        self._single, self._pandas = single, is_pandas(y_true, y_pred, sensitive_features, control_features)
        # A mapping of weights lists the groups of the population.
        self.groups, self.unlisted_groups = names, 0 if isinstance(weights, Mapping) else division.unlisted
        self.sensitive_levels, self.control_levels = list(division.features), list(strata.features)
        self._run(cases, weights, probabilities, alpha=alpha, level=level, gap=gap)

    @classmethod
    def from_counts(
        cls,
        counts: ArrayLike,
        sums: ArrayLike,
        squares: ArrayLike | None = None,
        *,
        names: Sequence[Any] | None = None,
        metric: str = "value",
        alpha: float,
        level: float = 0.05,
        gap: float | None = None,
        weights: str | Mapping[Any, float] = "rows",
        probabilities: Mapping[Any, float] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> FairnessFrame:
        """Returns the frame of groups whose rows were counted and summed before.

        The arguments that are not listed are those of the class.

        Args:
          counts: integers [groups], number of rows; groups without rows are allowed.
          sums: float [groups], sum of the metric over each group's rows; for rates, the number of errors.
          squares: float [groups], sum of the squares; None: the metric is 0 or 1 on each row.
          names: name of each group, a value or a tuple of values. None: 0, 1, ….
          metric: name of the metric.
        """
        group_sums = from_counts(counts, sums, squares, bounds=bounds)
        frame = cls.__new__(cls)
        listed = list(range(len(group_sums.counts)) if names is None else names)
        if len(listed) != len(group_sums.counts) or len(set(listed)) < len(listed):
            raise ValueError(f"names has {len(set(listed))} different names for {len(group_sums.counts)} groups")
        frame.groups, frame.unlisted_groups = [name if isinstance(name, tuple) else (name,) for name in listed], 0
        frame.sensitive_levels = [f"sensitive_feature_{i}" for i in range(len(frame.groups[0]))]
        frame.control_levels = []
        frame._single, frame._pandas = True, is_pandas(counts, sums)
        frame._run([_Case(metric, (), group_sums, None)], weights, probabilities, alpha=alpha, level=level, gap=gap)
        return frame

    @classmethod
    def from_noisy_sums(
        cls,
        sums: NoisySums,
        *,
        names: Sequence[Levels],
        metric: str,
        alpha: float,
        level: float = 0.05,
        gap: float | None = None,
    ) -> FairnessFrame:
        """Returns the frame of sums with Gaussian noise (`fl.fairness.noisy_statistic`).

        The arguments that are not listed are those of `from_counts`. Numbers of rows are noisy, and 0 for groups that
        are not tested.

        Args:
          sums: noisy sums of each group.
          names: values of each group, in the order of the sums.
        """
        frame = cls.__new__(cls)
        frame.groups, frame.unlisted_groups = list(names), 0
        frame.sensitive_levels, frame.control_levels = [f"sensitive_feature_{i}" for i in range(len(names[0]))], []
        frame._single, frame._pandas = True, False
        result, max_gap = noisy_test(sums, alpha=alpha, level=level, gap=gap)
        counts = np.where(np.isnan(max_gap.gaps), 0.0, np.maximum(np.rint(sums.counts), 1.0))
        totals = np.where(counts > 0, counts * np.clip(max_gap.gaps + max_gap.overall, 0, 1), 0.0)
        shown = GroupSums(counts, totals, totals)
        frame.tests = [StratumTest(metric, (), shown, result, max_gap, result.p_value)]
        return frame

    @classmethod
    def from_metric_frame(
        cls,
        metric_frame: Any,
        *,
        metric: str | None = None,
        count: str = "count",
        alpha: float,
        level: float = 0.05,
        gap: float | None = None,
        weights: str | Mapping[Any, float] = "rows",
        probabilities: Mapping[Any, float] | None = None,
    ) -> FairnessFrame:
        """Returns the frame of a `MetricFrame` of fairlearn that holds a rate and the number of rows behind it.

        The arguments that are not listed are those of the class.

        Args:
          metric_frame: frame of several metrics, one of which counts the rows of each group: fairlearn's `count`.
          metric: name of the rate. None: the only other metric in the frame.
          count: name of the metric that counts. It must count the rows that the rate is taken over: for a false
            positive rate those whose label is negative.

        Raises:
          ValueError: the frame lacks a metric, or a rate times its count is not an integer.
        """
        rates = read_rates(metric_frame, metric, count)
        frame = cls.__new__(cls)
        frame.groups, frame.unlisted_groups = rates.groups, 0
        frame.sensitive_levels, frame.control_levels = rates.sensitive_levels, rates.control_levels
        cases = []
        for stratum, totals in rates.totals.items():
            with _naming(rates.metric, stratum):
                cases.append(_Case(rates.metric, stratum, from_counts(*totals), None))
        frame._single, frame._pandas = True, is_pandas(metric_frame.by_group)
        frame._run(cases, weights, probabilities, alpha=alpha, level=level, gap=gap)
        return frame

    @property
    def test(self) -> FairnessTest:
        """Returns the result of the only test; raises ValueError if there are several (see `tests`)."""
        if len(self.tests) > 1:
            raise ValueError(f"the frame holds {len(self.tests)} tests: read them from `tests`")
        return self.tests[0].result

    @property
    def by_group(self) -> Any:
        """Returns the metric's mean in each stratum and group; NaN for groups without rows."""
        table: Table = {}
        for test in self.tests:
            keys = ((*test.stratum, *group) for group in self.groups)
            table.setdefault(test.metric, {}).update(zip(keys, test.sums.means.tolist(), strict=True))
        names = self.control_levels + self.sensitive_levels
        return shaped(table, names, single=self._single, pandas=self._pandas)

    @property
    def overall(self) -> Any:
        """Returns the metric's weighted mean over all groups with rows, tested or not, in each stratum."""
        return self._by_stratum(lambda test: test.max_gap.overall)

    def difference(self, method: Literal["between_groups", "to_overall"] = "between_groups") -> Any:
        """Returns the largest observed difference in each stratum; among many groups chance alone makes it large.

        Args:
          method: "between_groups" for the largest mean of a group minus the smallest one, "to_overall" for the largest
            gap between a group's mean and the overall mean.
        """
        if method == "between_groups":
            return self._by_stratum(lambda test: float(np.nanmax(test.max_gap.gaps) - np.nanmin(test.max_gap.gaps)))
        if method == "to_overall":
            return self._by_stratum(lambda test: float(np.nanmax(np.abs(test.max_gap.gaps))))
        raise ValueError(f"method {method!r} is unknown: give 'between_groups' or 'to_overall'")

    def to_dict(self) -> dict[str, Any]:
        """Returns settings, tests and groups as mappings, lists and numbers; NaN stands for groups without rows."""
        return {
            "sensitive_features": self.sensitive_levels,
            "control_features": self.control_levels,
            "groups": [list(group) for group in self.groups],
            "unlisted_groups": self.unlisted_groups,
            "tests": [
                {
                    "metric": test.metric,
                    "stratum": list(test.stratum),
                    "rejects": test.rejects,
                    "adjusted_p": test.adjusted_p,
                    "result": dataclasses.asdict(test.result),
                    "max_gap": {"overall": test.max_gap.overall, "p_value": test.max_gap.p_value},
                    "groups": {
                        "rows": test.sums.counts.astype(int).tolist(),
                        "mean": test.sums.means.tolist(),
                        "gap": test.max_gap.gaps.tolist(),
                        "gap_low": test.max_gap.low.tolist(),
                        "gap_high": test.max_gap.high.tolist(),
                        "p_value": test.max_gap.p_values.tolist(),
                    },
                }
                for test in self.tests
            ],
        }

    def _by_stratum(self, value: Callable[[StratumTest], float]) -> Any:
        table: Table = {}
        for test in self.tests:
            table.setdefault(test.metric, {})[test.stratum] = value(test)
        return shaped(table, self.control_levels, single=self._single, pandas=self._pandas)

    def _run(
        self,
        cases: list[_Case],
        weights: str | Mapping[Any, float],
        probabilities: Mapping[Any, float] | None,
        *,
        alpha: float,
        level: float,
        gap: float | None,
    ) -> None:
        """Tests every case, and corrects for the number of tests."""
        if isinstance(weights, str) and weights not in ("rows", "equal"):
            raise ValueError(f"weights {weights!r} are unknown: give 'rows', 'equal' or a mapping from group to weight")
        has_rows = np.any([case.sums.counts > 0 for case in cases], axis=0)
        mass = np.ones(len(self.groups)) if weights == "equal" else by_group("weights", weights, self.groups, has_rows)
        rates = by_group("probabilities", probabilities, self.groups, has_rows)
        results = []
        for case in cases:
            with _naming(case.metric, case.stratum):
                if case.draws is not None:
                    result = attribute_specific_test(case.draws, alpha=alpha, level=level, gap=gap)
                else:
                    result = weighted_test(
                        case.sums, alpha=alpha, level=level, gap=gap, weights=mass, probabilities=rates
                    )
                results.append((result, max_gap_test(case.sums, level=level, weights=mass)))
        adjusted = holm([result.p_value for result, _ in results])
        self.tests = [
            StratumTest(case.metric, case.stratum, case.sums, *result, float(p))
            for case, result, p in zip(cases, results, adjusted, strict=True)
        ]


class _Case(NamedTuple):
    """Holds the sums of one metric in one stratum by group, and by draw if groups were drawn."""

    metric: str
    stratum: Levels
    sums: GroupSums
    draws: GroupSums | None


@contextlib.contextmanager
def _naming(metric: str, stratum: Levels) -> Iterator[None]:
    """Adds metric and stratum to the errors of a test that is one of several."""
    try:
        yield
    except ValueError as error:
        if not stratum:
            raise
        raise ValueError(f"{metric} in the stratum {', '.join(map(str, stratum))}: {error}") from None


def _number(draws: Any) -> NDArray[np.int64]:
    """Returns the number of each row's draw; draws may have names of any kind, and as many as there are."""
    return divide_rows({"draws": [str(draw) for draw in as_column("draws", draws)]}).codes

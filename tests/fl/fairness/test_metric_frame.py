"""Tests of the interface of fairlearn's `MetricFrame`: values by group, strata, and what comes of pandas objects."""

import json
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl.fairness import FairnessFrame, holm, plan_weighted, row_metrics, weighted_test
from fl.fairness.groups import from_counts
from privacy.json_values import plain

RNG = np.random.default_rng(3)
SEX, RACE, YEAR = RNG.choice(["f", "m"], 600), RNG.choice(["a", "b", "c"], 600), RNG.choice([2023, 2024], 600)
TRUE = RNG.integers(0, 2, 600)
PREDICTED = np.where(RNG.random(600) < 0.1 + 0.3 * (RACE == "c"), 1 - TRUE, TRUE)
LABELS: dict[str, Any] = {"y_true": TRUE, "y_pred": PREDICTED}
GROUPS: dict[str, Any] = {"sensitive_features": {"sex": SEX, "race": RACE}, "alpha": 0.8}


@pytest.fixture(scope="module")
def frame() -> FairnessFrame:
    return FairnessFrame(metrics="zero_one_loss", **LABELS, **GROUPS)


@pytest.fixture(scope="module")
def strata() -> FairnessFrame:
    metrics = {"loss": "zero_one_loss", "fpr": "false_positive_rate"}
    return FairnessFrame(metrics=metrics, control_features={"year": YEAR}, **LABELS, **GROUPS)


def test_values_are_means_of_groups(frame):
    wrong = TRUE != PREDICTED
    by_group = {(s, r): wrong[(SEX == s) & (RACE == r)].mean() for s in "fm" for r in "abc"}
    assert frame.by_group == pytest.approx(by_group)
    assert frame.overall == pytest.approx(wrong.mean())
    assert frame.difference() == pytest.approx(max(by_group.values()) - min(by_group.values()))
    gaps = [abs(value - wrong.mean()) for value in by_group.values()]
    assert frame.difference("to_overall") == pytest.approx(max(gaps))
    assert frame.test.rejects and frame.test.groups == 6


def test_one_test_for_each_metric_and_stratum_with_holms_correction(strata):
    places = [("loss", (2023,)), ("loss", (2024,)), ("fpr", (2023,)), ("fpr", (2024,))]
    assert [(test.metric, test.stratum) for test in strata.tests] == places
    single = [test.result.p_value for test in strata.tests]
    assert [test.adjusted_p for test in strata.tests] == holm(single).tolist()
    assert [test.rejects for test in strata.tests] == [test.adjusted_p <= 0.05 for test in strata.tests]
    inside = (YEAR == 2024) & (SEX == "m") & (RACE == "b") & (TRUE == 0)
    assert strata.by_group["fpr"][2024, "m", "b"] == pytest.approx(PREDICTED[inside].mean())
    assert strata.overall["fpr"][2024] == pytest.approx(PREDICTED[(YEAR == 2024) & (TRUE == 0)].mean())
    with pytest.raises(ValueError, match="the frame holds 4 tests: read them from `tests`"):
        _ = strata.test


def test_a_p_value_that_rejects_alone_need_not_reject_among_several():
    counts, sums = [40, 40, 40], [3, 4, 11]
    alone = FairnessFrame.from_counts(counts, sums, alpha=0.5)
    assert alone.tests[0].rejects and 0.01 < alone.test.p_value
    codes, values = np.repeat([0, 1, 2], 40), np.concatenate([np.arange(40) < s for s in sums])
    equal = np.tile(np.arange(40) < 6, 3)
    among = FairnessFrame(
        metrics="mean_prediction",
        y_true=np.zeros(600),
        y_pred=np.concatenate([values, *[equal] * 4]).astype(float),
        sensitive_features=np.tile(codes, 5),
        control_features=np.repeat(np.arange(5), 120),
        alpha=0.5,
    )
    assert among.tests[0].result.p_value == pytest.approx(alone.test.p_value)
    assert not among.tests[0].rejects


def test_combinations_without_rows_are_listed():
    frame = FairnessFrame(
        metrics="accuracy_score",
        y_true=[0, 1, 0, 1, 1, 1],
        y_pred=[0, 1, 1, 1, 0, 1],
        sensitive_features=np.array([["f", "a"], ["f", "a"], ["f", "b"], ["f", "b"], ["m", "a"], ["m", "a"]]),
        alpha=0.5,
    )
    assert frame.sensitive_levels == ["sensitive_feature_0", "sensitive_feature_1"]
    assert np.isnan(frame.by_group["m", "b"]) and frame.by_group["f", "b"] == 0.5
    assert frame.test.groups == 3 and frame.test.untested_weight == 0
    assert json.loads(json.dumps(plain(frame.to_dict())))["tests"][0]["groups"]["mean"] == [1.0, 0.5, 0.5, None]


def test_weights_and_probabilities_are_those_of_the_named_groups():
    names, counts, sums = [("f", "x"), ("f", "y"), ("m", "x")], [30, 60, 50], [3, 9, 20]
    weights = {names[2]: 5.0, names[0]: 1.0, names[1]: 2.0}
    probabilities = dict(zip(names, (0.2, 0.45, 0.35), strict=True))
    case: dict[str, Any] = {"names": names, "alpha": 0.5, "weights": weights}
    frame = FairnessFrame.from_counts(counts, sums, **case, probabilities=probabilities)
    direct = weighted_test(from_counts(counts, sums), alpha=0.5, weights=[1, 2, 5], probabilities=[0.2, 0.45, 0.35])
    assert frame.test == direct
    equal = FairnessFrame.from_counts(counts, sums, alpha=0.5, weights="equal")
    assert equal.test == weighted_test(from_counts(counts, sums), alpha=0.5, weights=[1, 1, 1])
    assert equal.by_group == {0: 0.1, 1: 0.15, 2: 0.4}


def test_draws_of_groups_are_tested_as_such():
    # Each group twice, once with the rows of each year.
    draws = [f"{s}{r}{y}" for s, r, y in zip(SEX, RACE, YEAR, strict=True)]
    frame = FairnessFrame(metrics="zero_one_loss", draws=draws, **LABELS, **GROUPS)
    assert (frame.test.sampling, frame.test.groups) == ("attribute-specific", 12)


def test_metric_frame_with_counts():
    """A stand-in for a `MetricFrame`: its by_group is a data frame, which is read by column and index."""

    class ByGroup(dict):
        columns = ["loss", "count"]
        index = [(2023, "f"), (2023, "m"), (2024, "f"), (2024, "m")]

    by_group = ByGroup(loss=[0.25, 0.5, np.nan, 0.5], count=[40, 60, np.nan, 4])
    mf = types.SimpleNamespace(by_group=by_group, control_levels=["year"], sensitive_levels=["sex"])
    with pytest.raises(
        ValueError, match="loss in the stratum 2024: groups that have a weight and two rows or more: 1 of 2"
    ):
        FairnessFrame.from_metric_frame(mf, alpha=0.5)
    by_group.update(loss=[0.25, 0.5, 0.5, 0.5], count=[40, 60, 2, 4])
    frame = FairnessFrame.from_metric_frame(mf, alpha=0.5)
    assert frame.tests[0].result == weighted_test(from_counts([40, 60], [10, 30]), alpha=0.5)
    assert [test.stratum for test in frame.tests] == [(2023,), (2024,)]
    by_group.update(loss=[0.25, 0.51, 0.5, 0.5])
    with pytest.raises(ValueError, match="metric 'loss' times 'count' is not an integer in every group"):
        FairnessFrame.from_metric_frame(mf, alpha=0.5)
    with pytest.raises(ValueError, match="the MetricFrame has the metrics loss, count: give it a mapping with a rate"):
        FairnessFrame.from_metric_frame(mf, metric="tpr", alpha=0.5)


def test_pandas_in_and_out(frame, strata):
    people, labels = pd.DataFrame({"sex": SEX, "race": RACE}), {name: pd.Series(x) for name, x in LABELS.items()}
    of_pandas = FairnessFrame(metrics="zero_one_loss", sensitive_features=people, alpha=0.8, **labels)
    assert of_pandas.by_group.index.names == ["sex", "race"]
    assert of_pandas.by_group.to_dict() == frame.by_group and of_pandas.overall == frame.overall
    metrics, year = {"loss": "zero_one_loss", "fpr": "false_positive_rate"}, pd.Series(YEAR, name="year")
    several = FairnessFrame(metrics=metrics, sensitive_features=people, control_features=year, alpha=0.8, **labels)
    assert several.by_group.to_dict() == strata.by_group
    assert several.overall.index.name == "year" and several.overall.to_dict() == strata.overall


def test_every_metric_is_the_mean_of_the_rows_that_count():
    """Expected values by the definition of each rate, from the counts of the four outcomes."""
    tp, fp, tn, fn = (int(((TRUE == t) & (PREDICTED == p)).sum()) for t, p in ((1, 1), (0, 1), (0, 0), (1, 0)))
    expected = {
        "accuracy_score": (tp + tn) / 600,
        "zero_one_loss": (fp + fn) / 600,
        "selection_rate": (tp + fp) / 600,
        "mean_prediction": (tp + fp) / 600,
        "true_positive_rate": tp / (tp + fn),
        "false_positive_rate": fp / (fp + tn),
        "true_negative_rate": tn / (fp + tn),
        "false_negative_rate": fn / (tp + fn),
        "recall_score": tp / (tp + fn),
        "precision_score": tp / (tp + fp),
        "mean_absolute_error": (fp + fn) / 600,
        "mean_squared_error": (fp + fn) / 600,
    }
    assert expected.keys() == row_metrics.ROW_METRICS.keys()
    means = {name: np.nanmean(row_metrics.row_values(name, TRUE, PREDICTED, {})) for name in expected}
    assert means == pytest.approx(expected)


def test_functions_of_scikit_learn_and_of_rows_are_metrics():
    from sklearn import metrics

    known = row_metrics.row_values(metrics.zero_one_loss, TRUE, PREDICTED, {})
    assert known.tolist() == (TRUE != PREDICTED).tolist()

    def cost(true: np.ndarray, predicted: np.ndarray, price: np.ndarray) -> np.ndarray:
        return price * (true != predicted)

    price = RNG.random(600)
    frame = FairnessFrame(metrics=cost, sample_params={"price": price}, **LABELS, **GROUPS)
    assert frame.overall == pytest.approx((price * (TRUE != PREDICTED)).mean())
    assert not frame.tests[0].sums.is_binary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": "f1_score"}, "metric 'f1_score' is unknown: give a function of rows, or one of accuracy_score"),
        ({"metrics": lambda y, p: 0.5}, "metric '<lambda>' is not known to be a mean over rows"),
        (
            {"sample_params": {"sample_weight": [1]}},
            "sample_params sample_weight: 'zero_one_loss' counts every row once",
        ),
        ({"y_pred": [0, 1]}, "y_true has 600 rows and y_pred 2: give one of each for every row"),
        ({"y_true": [None] * 600}, "y_true has no value in 600 of 600 rows: leave these rows out"),
        ({"control_features": [1, 2]}, "control_features has 2 rows and sensitive_features 600"),
        ({"sensitive_features": ["x"] * 600}, "the rows form 1 group: at least two are needed"),
        ({"sensitive_features": RNG.random(600)}, "column 'sensitive_feature_0' is continuous"),
        ({"weights": "sqrt"}, "weights 'sqrt' are unknown: give 'rows', 'equal' or a mapping from group to weight"),
        ({"weights": [1, 2]}, "weights has type list: give a mapping from group to number"),
        ({"weights": {"f": 1}}, r"weights names the group \('f',\): give one value for each of 2 features"),
        ({"weights": {("f", "a"): 1}}, r"weights lacks the group \('f', 'b'\): give a number for each group"),
        ({"metrics": {}}, "metrics is empty: give at least one metric"),
        ({"draws": [1] * 600, "weights": "equal"}, "draws were made with the groups' weights: leave weights and"),
        ({"draws": np.arange(600) // 20}, "draws give rows 0 and .*, the same draw, but they are of different groups"),
        ({"y_pred": np.where(PREDICTED, 0.9, 0.0)}, "y_pred holds 0.9, which is none of the labels in y_true"),
        ({"y_pred": np.where(PREDICTED, "yes", "no")}, "y_pred holds '(yes|no)', which is none of the labels"),
        ({"y_pred": PREDICTED.astype(str), "metrics": "accuracy_score"}, "y_pred holds '[01]', which is none of the"),
        ({"bounds": None}, "bounds None are wrong: give the least and the largest possible value"),
        ({"bounds": (0, 1, 2)}, r"bounds \(0, 1, 2\) are wrong: give the least"),
        ({"sample_params": [1]}, r"sample_params \[1\] are no mapping: give the function's arguments by name"),
        (
            {"metrics": "false_positive_rate", "probabilities": {("f", "a"): 1}},
            "metric 'false_positive_rate' leaves rows out, whose groups were drawn",
        ),
        (
            {"control_features": YEAR, "probabilities": {("f", "a"): 1}},
            "control_features divide rows that were drawn by group: leave them or probabilities out",
        ),
        ({"alpha": 2}, r"alpha must lie in \[0, 1\), got 2"),
        ({"metrics": "selection_rate", "y_pred": np.full(600, 2)}, "the metric needs labels 0 and 1, got 2"),
        ({"metrics": "mean_prediction", "y_pred": SEX}, "the metric needs numbers, got .[fm]."),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FairnessFrame(**{"metrics": "zero_one_loss", **LABELS, **GROUPS, **arguments})


def test_other_methods_of_difference_are_refused(frame):
    with pytest.raises(ValueError, match="method 'max' is unknown: give 'between_groups' or 'to_overall'"):
        frame.difference("max")


def test_plan_of_named_groups_is_tested_with_its_probabilities():
    plan = plan_weighted([3, 2, 1], alpha=0.5, gap=0.4)
    counts = np.random.default_rng(0).multinomial(plan.rows, plan.probabilities)
    names = ["a", "b", "c"]
    frame = FairnessFrame.from_counts(
        counts,
        counts // 2,
        names=names,
        alpha=0.5,
        weights=dict(zip(names, (3, 2, 1), strict=True)),
        probabilities=dict(zip(names, plan.probabilities, strict=True)),
    )
    assert frame.test.sampling == "weighted" and not frame.test.rejects


def test_weights_name_the_groups_of_the_population_with_and_without_rows():
    values, groups = [0, 1, 0, 0, 1, 1], np.array([["f", "a"]] * 3 + [["m", "b"]] * 3)
    case: dict[str, Any] = {"metrics": "mean_prediction", "y_true": values, "y_pred": values, "alpha": 0.5}
    weights = {("f", "a"): 1, ("m", "b"): 2, ("x", "a"): 3}
    frame = FairnessFrame(sensitive_features=groups, weights=weights, **case)
    assert frame.groups == [("f", "a"), ("f", "b"), ("m", "a"), ("m", "b"), ("x", "a")]
    assert frame.test.untested_groups == 1 and frame.test.untested_weight == 0.5
    assert frame.test == weighted_test(from_counts([3, 3, 0], [1, 2, 0]), alpha=0.5, weights=[1, 2, 3])
    drawn = FairnessFrame(sensitive_features=groups, weights=weights, probabilities=weights, **case)
    assert drawn.test == weighted_test(
        from_counts([3, 3, 0], [1, 2, 0]), alpha=0.5, weights=[1, 2, 3], probabilities=[1, 2, 3]
    )
    with pytest.raises(ValueError, match=r"weights names the group \('z',\), which is not in the data"):
        FairnessFrame.from_counts([3, 3], [1, 2], names=["a", "b"], weights={"a": 1, "b": 1, "z": 1}, alpha=0.5)

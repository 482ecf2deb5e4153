"""Lists bugs of fairness tests, each with the test that must catch it."""

from tests.mutation.bug import Bug

_VARIANCE = "fl/fairness/variance.py"
_NOISY = "fl/fairness/noisy_statistic.py"
_GAPS = "fl/fairness/gaps.py"
_TESTS = "tests/fl/fairness/"
_STUDY, _STUDY_TESTS = "experiments/reproduce/", "tests/experiments/reproduce/"
_CVAR = _TESTS + "test_gaps.py::test_cvar_is_the_minimum_of_rockafellar_and_uryasev_also_with_equal_gaps"

FAIRNESS = (
    Bug(
        "variance of rows counted as variance of groups",
        _VARIANCE,
        "pair_sums = deviations**2 - centred_squares(sums, center)",
        "pair_sums = deviations**2",
        _TESTS + "test_variance.py::test_estimate_has_no_bias_for_given_counts",
    ),
    Bug(
        "error of the overall value left in",
        _VARIANCE,
        "weights * (1 - weights), pairs",
        "weights, pairs",
        _TESTS + "test_variance.py::test_estimate_has_no_bias_for_given_counts",
    ),
    Bug(
        "number of pairs taken for the squared number of rows",
        _VARIANCE,
        "counts * (counts - 1) if expected is None",
        "counts**2 if expected is None",
        _TESTS + "test_variance.py::test_estimate_has_no_bias_for_given_counts",
    ),
    Bug(
        "CVaR: gap at the boundary counts as a whole",
        _GAPS,
        "np.minimum(np.cumsum(mass[worst_first]), tail)",
        "np.where(np.cumsum(mass[worst_first]) - mass[worst_first] < tail, np.cumsum(mass[worst_first]), tail)",
        _TESTS + "test_gaps.py::test_cvar_splits_the_gap_at_the_boundary",
    ),
    Bug(
        "CVaR: of groups with equal gaps one counts",
        _GAPS,
        'np.argsort(-values, kind="stable")',
        "np.unique(-values, return_index=True)[1]",
        _CVAR,
    ),
    Bug(
        "rows drawn with weights of the exponent 1/2",
        "fl/fairness/planner.py",
        "powers = normalized_weights(weights) ** (2 / 3)",
        "powers = normalized_weights(weights) ** (1 / 2)",
        _TESTS + "test_planner.py::test_sampling_probabilities_minimise_the_variance_of_equal_groups",
    ),
    Bug(
        "Holm's correction left out",
        "fl/fairness/metric_frame.py",
        "adjusted = holm([result.p_value for result, _ in results])",
        "adjusted = np.array([result.p_value for result, _ in results])",
        _TESTS + "test_metric_frame.py::test_a_p_value_that_rejects_alone_need_not_reject_among_several",
    ),
    Bug(
        "Holm: adjusted p-values fall again",
        "fl/fairness/hypothesis_test.py",
        "np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))",
        "values[order] * np.arange(len(values), 0, -1)",
        _TESTS + "test_hypothesis_test.py::test_holm_rejects_as_the_procedure_step_by_step",
    ),
    Bug(
        "null distribution taken for a normal one",
        "fl/fairness/skewed.py",
        "    if skewness < _ALMOST_SYMMETRIC:\n        return float(special.ndtr(-standard))",
        "    if True:\n        return float(special.ndtr(-standard))",
        _TESTS + "test_skewed.py::test_sum_of_squares_has_a_chi_square_distribution[1]",
    ),
    Bug(
        "rare losses: smooth distribution where it does not fit",
        "fl/fairness/skewed.py",
        "_MAX_SKEWNESS = 4.0",
        "_MAX_SKEWNESS = 1e9",
        _TESTS + "test_hypothesis_test.py::test_level_of_the_test_where_rare_losses_hardly_ever_meet_in_a_group",
    ),
    Bug(
        "clients counted as their tokens",
        "fl/fairness/client_sums.py",
        "np.stack([score**2, score * rest, rest**2], 1), 0)",
        "np.stack([score**2, score * rest, rest**2], 1) * tokens[:, None], 0)",
        _TESTS + "test_client_sums.py::test_totals_are_clients_scores_and_squares_of_scores",
    ),
    Bug(
        "clients counted as their tokens in TFF",
        "fl/group_sums.py",
        "tf.stack([score**2, score * rest, rest**2], 1), 0)",
        "tf.stack([score**2, score * rest, rest**2], 1) * tokens[:, tf.newaxis], 0)",
        "tests/fl/test_group_sums.py::test_totals_are_the_sums_of_each_client_alone_whatever_the_shards",
    ),
    Bug(
        "noise in the sums counted as a gap",
        _NOISY,
        "pair_sums = deviations**2 - centred_squares(sums, center) - noise",
        "pair_sums = deviations**2 - centred_squares(sums, center)",
        _TESTS + "test_noisy_statistic.py::test_mean_over_the_noise_is_the_statistic_without_noise",
    ),
    Bug(
        "noise left out of the threshold",
        _NOISY,
        "max(center, 1 - center), noise)",
        "max(center, 1 - center))",
        _TESTS + "test_noisy_statistic.py::test_null_moments_are_those_of_all_outcomes",
    ),
    Bug(
        "weights with the noise of the statistic",
        _NOISY,
        "    return total / _pair_square(center) ** 2",
        "    return sums.counts",
        _TESTS + "test_noisy_statistic.py::test_noise_of_sizes_is_independent_of_that_of_the_statistic",
    ),
    Bug(
        "noise for half the sensitivity of a client",
        "fl/fairness/client_sums.py",
        "    return noise_multiplier * SENSITIVITY, noise_multiplier * SENSITIVITY / math.sqrt(2)",
        "    return noise_multiplier * SENSITIVITY / 2, noise_multiplier * SENSITIVITY / math.sqrt(2) / 2",
        _TESTS + "test_client_sums.py::test_noise_has_the_sensitivity_of_the_scaled_sums",
    ),
    Bug(
        "evaluation with noise left out of the reported epsilon",
        "privacy/report/contents.py",
        "spent = _add_releases(plan, ledger, of_rounds)",
        "spent = of_rounds",
        "tests/privacy/report/test_report.py::test_epsilon_covers_charged_releases_and_the_report_names_them",
    ),
    Bug(
        "the same noise on two different sums",
        "privacy/ledger/ledger.py",
        "{multiplier!r} {hashlib.sha256(values).hexdigest()}",
        "{multiplier!r}",
        "tests/privacy/ledger/test_ledger.py::test_a_release_is_charged_before_its_noise_and_once_for_the_same_values",
    ),
    Bug(
        "study: the gap is not scaled after the overall rate has moved",
        _STUDY + "cvar_instances.py",
        "shift *= gap / cvar_gap(shift, weights, alpha)",
        "shift *= gap",
        _STUDY_TESTS + "test_cvar_fairness.py::test_population_has_exactly_the_gap",
    ),
    Bug(
        "study: largest gap tested on one side",
        _STUDY + "cvar_instances.py",
        "2 * min(below, above) * len(sums)",
        "min(below, above) * len(sums)",
        _STUDY_TESTS + "test_cvar_fairness.py::test_quick_test_of_the_largest_gap_is_that_of_the_package",
    ),
    Bug(
        "study: rows for the power 1/2",
        _STUDY + "cvar_samples.py",
        "root = (float(special.ndtri(power)) - offset) / slope",
        "root = -offset / slope",
        _STUDY_TESTS + "test_cvar_fairness.py::test_power_root_is_that_of_the_curve[0.95]",
    ),
    Bug(
        "study: interval of the rows needed without the error of the slope",
        _STUDY + "cvar_samples.py",
        "gradient = -np.array([1.0, root]) / slope",
        "gradient = -np.array([0.2, 0.0]) / slope",
        _STUDY_TESTS + "test_cvar_fairness.py::test_intervals_of_rows_needed_hold_the_true_number",
    ),
    Bug(
        "study: model tested on the people whom it was fitted on",
        _STUDY + "fairness_tables.py",
        "np.sort(order[len(label) // 2 :])",
        "np.sort(order[: len(label) // 2])",
        _STUDY_TESTS + "test_cvar_tables.py::test_the_tested_half_has_no_influence_on_its_predictions[adult]",
    ),
    Bug(
        "study: losses of a table not permuted",
        _STUDY + "cvar_tables.py",
        "generator.multivariate_hypergeometric(counts, int(losses.sum()))",
        "losses",
        _STUDY_TESTS + "test_cvar_tables.py::test_a_table_is_tested_as_by_the_frame_and_permuted_losses_keep_the_level",
    ),
)

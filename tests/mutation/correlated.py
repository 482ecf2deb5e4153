"""Lists bugs of correlated noise (DP-FTRL), each with the test that must catch it."""

from tests.mutation.bug import Bug

_SENSITIVITY = "privacy/correlated/sensitivity.py"
_PARTICIPATION = "privacy/correlated/participation.py"
_TREE_SUMS = "privacy/correlated/tree_sums.py"
_WORKLOAD = "privacy/correlated/workload.py"
_PLAN_EPSILON = "privacy/accounting/plan_epsilon.py"
_NOISE = "fl/correlated_noise.py"
_TESTS = "tests/privacy/correlated/"
_OF_SENSITIVITY, _OF_PLANS = _TESTS + "test_sensitivity.py::", _TESTS + "test_plan.py::"

CORRELATED = (
    Bug(
        "separation off by one: rounds between taken for the distance of rounds",
        _PARTICIPATION,
        'checks.whole("between", between, 0, "0 allows consecutive rounds") + 1, max_participations',
        'max(1, checks.whole("between", between, 0, "0 allows consecutive rounds")), max_participations',
        _OF_SENSITIVITY + "test_two_conventions_of_separation_differ_by_one",
    ),
    Bug(
        "separation off by one: worst pattern one round farther apart",
        _PARTICIPATION,
        "candidate[..., separation:] += best[..., :later]",
        "candidate[..., separation + 1 :] += best[..., : max(later - 1, 0)]",
        _OF_SENSITIVITY + "test_worst_sum_is_the_largest_over_all_patterns[10-3-9]",
    ),
    Bug(
        "separation off by one in the ledger",
        "privacy/ledger/compliance.py",
        "if entry.round - last < separation:",
        "if entry.round - last < separation - 1:",
        _OF_PLANS + "test_ledger_refuses_a_client_within_its_separation_and_above_its_limit",
    ),
    Bug(
        "ledger allows one participation too many",
        "privacy/ledger/compliance.py",
        "if history.participations[client] >= limit:",
        "if history.participations[client] > limit:",
        _OF_PLANS + "test_ledger_refuses_a_client_within_its_separation_and_above_its_limit",
    ),
    Bug(
        "sampler takes clients one round too early",
        "fl/cohorts.py",
        "min(self._next + self._sampling.min_separation, _NEVER)",
        "min(self._next + self._sampling.min_separation - 1, _NEVER)",
        "tests/fl/test_cohorts.py::test_check_in_keeps_separation_and_limit_and_fills_cohorts_as_far_as_they_allow",
    ),
    Bug(
        "tree: one free round too few between two rounds of a client",
        _TREE_SUMS,
        "gap = min(separation, rounds) - 1",
        "gap = min(separation, rounds)",
        _OF_SENSITIVITY + "test_tree_sensitivity_is_the_largest_over_all_patterns[11-0-11-None]",
    ),
    Bug(
        "tree: one free round too few between the halves of a subtree",
        _TREE_SUMS,
        "others[:, gap - begin - end]",
        "others[:, np.maximum(gap - begin - end - 1, 0)]",
        _OF_SENSITIVITY + "test_tree_sensitivity_is_the_largest_over_all_patterns[8-2-4-None]",
    ),
    Bug(
        "a round after the planned ones has noise",
        _NOISE,
        'tf.debugging.assert_less(history["done"], rounds, message=message)',
        'tf.debugging.assert_less(history["done"], rounds + 1, message=message)',
        "tests/fl/test_correlated_noise.py::test_round_after_the_planned_ones_is_refused_in_every_graph[7-mechanism0]",
    ),
    Bug(
        "tree: rounds with a client in both halves count only where the left half falls first",
        _TREE_SUMS,
        "[:, : falls.sum(axis=1).max()]",
        "[:, :1]",
        _OF_SENSITIVITY + "test_tree_sensitivity_of_many_participations",
    ),
    Bug(
        "restarted tree uses the old tree's nodes again",
        _NOISE,
        "nodes = [tf.where(begins, tf.zeros_like(node), node) for node in nodes]",
        "nodes = list(nodes)",
        "tests/fl/test_correlated_noise.py::test_tree_with_the_same_node_noise_equals_tensorflow_privacys[4]",
    ),
    Bug(
        "metrics of a part of a run charged by the share of its rounds",
        _PLAN_EPSILON,
        "turns_share = cyclic.max_participations(rounds) / plan.max_participations",
        "turns_share = rounds / plan.rounds",
        _OF_PLANS + "test_part_of_a_run_with_metrics_costs_the_metrics_of_its_rounds",
    ),
    Bug(
        "metrics of amplified rounds charged once for all rounds of the plan",
        _PLAN_EPSILON,
        "+ share / plan.max_participations",
        "+ share / plan.rounds",
        _OF_PLANS + "test_amplified_rounds_with_metrics_cost_both_in_every_turn",
    ),
    Bug(
        "all levels of a tree have the same noise in the engine",
        "fl/correlated_mean.py",
        "gaussian.stream(noise_seed, name)",
        'gaussian.stream(noise_seed, "update")',
        "tests/fl/test_correlated_mean.py::test_encoded_models_hold_the_updates_and_independent_noise[mechanism2]",
    ),
    Bug(
        "clients who check in keep their participations when the run begins again",
        "fl/cohorts.py",
        "        self._participations = np.zeros(self._population, np.int64)",
        '        self._participations = getattr(self, "_participations", np.zeros(self._population, np.int64))',
        "tests/fl/test_cohorts.py::test_check_in_keeps_separation_and_limit_and_fills_cohorts_as_far_as_they_allow",
    ),
    Bug(
        "partition and draw of a cyclic Poisson round have the same random numbers",
        "fl/cohorts.py",
        "stream=1",
        "stream=0",
        "tests/fl/test_cohorts.py::test_no_stream_of_random_numbers_is_used_twice[sampling0]",
    ),
    Bug(
        "restart that repeats the first tree's noise",
        "fl/correlated_factory.py",
        "global_state.seed[1] + global_state.round]",
        "global_state.seed[1] + global_state.round % 4]",
        "tests/fl/test_correlated_mean.py::test_query_draws_fresh_noise_in_a_restarted_tree",
    ),
    Bug(
        "band longer than the separation taken for orthogonal columns",
        _SENSITIVITY,
        "if len(column) <= participation.min_separation:",
        "if len(column) <= participation.min_separation + 1:",
        _OF_SENSITIVITY + "test_column_norms_alone_would_understate_a_band_longer_than_the_separation",
    ),
    Bug(
        "band longer than the cohorts is amplified",
        _PLAN_EPSILON,
        "plan.mechanism.bands <= plan.sampling.cohorts",
        "plan.mechanism.bands <= plan.sampling.cohorts + 1",
        _OF_PLANS + "test_band_within_the_cohorts_is_amplified_by_cyclic_poisson_and_no_other_mechanism_is",
    ),
    Bug(
        "sensitivity by the column norm only",
        _SENSITIVITY,
        "float(np.linalg.norm(sum_earliest(column, rounds, participation)))",
        "float(np.linalg.norm(column))",
        _OF_SENSITIVITY + "test_square_root_matrix_equals_jax_privacy[2052-6-342-6.0994237265]",
    ),
    Bug(
        "coefficients that rise taken for falling ones",
        _SENSITIVITY,
        "if np.all(column >= 0) and np.all(np.diff(column) <= 0):",
        "if np.all(column >= 0):",
        _OF_SENSITIVITY + "test_rising_coefficients_are_not_taken_for_falling_ones",
    ),
    Bug(
        "momentum counted twice in the workload",
        _WORKLOAD,
        "return np.power(self.momentum, np.arange(self.rounds))",
        "return np.power(self.momentum, np.arange(self.rounds)) * np.arange(1, self.rounds + 1)",
        _TESTS + "test_factorisation.py::test_workload_is_what_the_server_computes[workload1]",
    ),
    Bug(
        "momentum counted twice by the noise",
        _NOISE,
        "noise -= tf.matmul(tf.constant(rest), last)[0]",
        "noise -= tf.matmul(tf.constant(rest), last)[0] - 0.9 * last[0]",
        "tests/fl/test_correlated_noise.py::test_noise_times_the_matrix_is_the_fresh_noise[mechanism2]",
    ),
    Bug(
        "metrics of a run charged once for all rounds of a client",
        "privacy/plan.py",
        "rounds = 1 if self.mechanism is None else self.max_participations",
        "rounds = 1",
        _OF_PLANS + "test_metrics_and_update_share_the_budget_of_the_run",
    ),
)

"""Lists bugs of choosing among samples, each with the test that must catch it."""

from tests.mutation.bug import Bug

_FOLDER = "models/alignment/"
_BEST_OF_N = _FOLDER + "best_of_n.py"
_CANDIDATES = _FOLDER + "candidates.py"
_OUTCOMES = _FOLDER + "outcomes.py"
_STUDIES = "experiments/reproduce/"

_TESTS = "tests/models/alignment/"
_STUDY_TESTS = "tests/experiments/reproduce/"
_FOUR = _TESTS + "test_best_of_n.py::test_four_outcomes_have_the_values_of_the_oracle"
_DRAWS = _TESTS + "test_policies.py::test_distribution_is_that_of_all_draws"

ALIGNMENT = (
    Bug(
        "best-of-n: duplicates counted twice in the selected sample's probability",
        _CANDIDATES,
        "level = {sample: log_p for sample, reward, log_p in pairs if reward == self.rewards[index]}",
        "level = dict(enumerate(log_p for _, reward, log_p in pairs if reward == self.rewards[index]))",
        _TESTS + "test_candidates.py::test_a_sample_drawn_twice_counts_once",
    ),
    Bug(
        "best-of-n: token sequences of one text not joined",
        _CANDIDATES,
        "if reward == self.rewards[index]}",
        "if sample == self.samples[index]}",
        _TESTS + "test_candidates.py::test_distinct_samples_of_equal_reward_are_one_level",
    ),
    Bug(
        "best-of-n: ties of outcomes broken by index",
        _OUTCOMES,
        "levels[1:] != levels[:-1]",
        "levels[1:] >= levels[:-1]",
        _TESTS + "test_policies.py::test_best_of_n_with_ties_is_that_of_all_draws",
    ),
    Bug(
        "best-of-n: first of the tied candidates taken",
        _BEST_OF_N,
        "np.where(candidates.rewards == candidates.rewards.max(), 0.0, -np.inf)",
        "np.where(np.arange(self.n) == candidates.rewards.argmax(), 0.0, -np.inf)",
        _TESTS + "test_policies.py::test_tied_candidates_are_selected_equally_often_wherever_they_stand",
    ),
    Bug(
        "best-of-n: log n as bound of the KL",
        _FOLDER + "policy.py",
        "np.log(n) - (n - 1) / n",
        "np.log(n)",
        _FOUR,
    ),
    Bug(
        "best-of-n: bound returned as the KL",
        _BEST_OF_N,
        "return max(0.0, float(chosen @ ratios))",
        "return kl_bound(n)",
        _FOUR,
    ),
    Bug(
        "best-of-n: one sample too few below the level",
        _BEST_OF_N,
        "all_below = n * ",
        "all_below = (n - 1) * ",
        _FOUR,
    ),
    Bug(
        "best-of-n: estimator without the chance of missing the level",
        _BEST_OF_N,
        "misses * bound + divergence",
        "bound + divergence",
        _TESTS + "test_best_of_n.py::test_estimator_has_the_values_of_the_oracle",
    ),
    Bug(
        "best-of-n: ties won in the win rate",
        _OUTCOMES,
        "distribution * (self.below + self.masses / 2)",
        "distribution * self.at_most",
        _FOUR,
    ),
    Bug(
        "pool: subsets drawn with replacement",
        _FOLDER + "pools.py",
        "weights *= np.maximum(rank - subset, 0) / max(rank - 1, 1)",
        "weights *= ((rank - 1) / rank) ** (subset - 1)",
        _TESTS + "test_pools.py::test_rewards_of_best_of_n_are_means_over_all_subsets",
    ),
    Bug(
        "soft best-of-n: the selected sample competes with itself",
        _FOLDER + "soft_best_of_n.py",
        "np.exp((n - 1) * np.log1p",
        "np.exp(n * np.log1p",
        _DRAWS,
    ),
    Bug(
        "majority vote: tied answers share nothing",
        _FOLDER + "majority.py",
        "terms[:, :, votes] *= tied",
        "terms[:, :, votes] *= 1",
        _DRAWS,
    ),
    Bug(
        "rewind: the best of the rejected instead of the last",
        _FOLDER + "rewind.py",
        "if enough.any() else len(enough) - 1",
        "if enough.any() else int(np.argmax(candidates.rewards))",
        _DRAWS,
    ),
    Bug(
        "guided: the drafter's share of the reward with the wrong sign",
        _FOLDER + "guided.py",
        "(target - drafter)",
        "(drafter - target)",
        _TESTS + "test_guided.py::test_guided_selection_is_not_lossless_but_approaches_the_tilt",
    ),
    Bug(
        "guided: distance of drafter and target left out of the bound",
        _FOLDER + "guided.py",
        'growth = math.log1p(require_number("chi_squared", chi_squared, 0))',
        "growth = 0.0",
        _TESTS + "test_guided.py::test_bound_keeps_the_distance_of_the_models_where_rewards_do_not_matter",
    ),
    Bug(
        "inference time: ties won against the reference",
        _FOLDER + "inference_time.py",
        "win = (outcomes.at_most**n + outcomes.below**n) / 2",
        "win = outcomes.at_most**n",
        _TESTS + "test_inference_time.py::test_win_rate_is_that_of_all_draws",
    ),
    Bug(
        "tilt: wrong sign of the reward's weight",
        _FOLDER + "tilt.py",
        "exponents = reward_weight * (levels - mean)",
        "exponents = reward_weight * (mean - levels)",
        _TESTS + "test_tilt.py::test_the_example_of_the_oracle",
    ),
    Bug(
        "tilt: closeness with the wrong sign",
        _FOLDER + "tilt.py",
        "kl - self.kl + (self.reward_weight * lacking",
        "kl - self.kl - (self.reward_weight * lacking",
        _TESTS + "test_tilt.py::test_closeness_is_an_identity_for_every_policy",
    ),
    Bug(
        "asymptotics: no sample can reach the level below",
        _FOLDER + "asymptotics.py",
        "-np.exp(log_n + log_cost) + gained",
        "gained",
        _TESTS + "test_asymptotics.py::test_best_of_exponentially_many_has_the_values_of_the_table",
    ),
    Bug(
        "asymptotics: order of the cross entropy off by one",
        _FOLDER + "asymptotics.py",
        'excess = require_number("order", order) - 1',
        'excess = require_number("order", order)',
        _TESTS + "test_asymptotics.py::test_cumulants_of_log_probabilities_are_renyi_cross_entropies",
    ),
    Bug(
        "alignment study: probabilities of high rewards under the reference",
        _STUDIES + "alignment.py",
        "tilted = Outcomes(best.distribution, outcomes.rewards)",
        "tilted = outcomes",
        _STUDY_TESTS + "test_alignment.py::test_rates_of_a_high_mean_reward_are_those_of_the_specification",
    ),
    Bug(
        "alignment study: texts with exactly the mean reward not counted",
        _STUDIES + "alignment.py",
        "np.array(mean_rewards) - 1e-6",
        "np.array(mean_rewards) + 1e-6",
        _STUDY_TESTS + "test_alignment.py::test_rates_count_texts_with_exactly_the_mean_reward",
    ),
    Bug(
        "generate --best-of: probability of the model's softmax instead of the distribution that was sampled from",
        "experiments/commands/selection.py",
        'for name in ("log_probs", "unprocessed_log_probs"))',
        'for name in ("unprocessed_log_probs", "unprocessed_log_probs"))',
        "tests/experiments/commands/test_generate.py::test_best_of_takes_probabilities_of_the_processed_distribution",
    ),
    Bug(
        "texts drawn together: all of one request",
        "models/signatures.py",
        "request.request + tf.range(texts)",
        "request.request + 0 * tf.range(texts)",
        "tests/models/test_device_samples.py::test_file_draws_the_texts_of_successive_requests_together[autoregressive]",
    ),
    Bug(
        "best-of-n on models: a text's own probability left out of its density",
        _STUDIES + "best_of_n_models.py",
        "((lower + masses) ** n - lower**n) / masses)",
        "n * lower ** (n - 1))",
        _STUDY_TESTS + "test_best_of_n_models.py::test_kl_from_a_pool_is_the_exact_one[True-16]",
    ),
    Bug(
        "inference-time study: single samples compared instead of best-of-n",
        _STUDIES + "inference_time.py",
        "np.cumsum(policies, axis=-1) ** n",
        "np.cumsum(policies, axis=-1) ** 1",
        _STUDY_TESTS + "test_inference_time.py::test_objective_is_that_of_all_draws",
    ),
    Bug(
        "inference-time study: perturbations that change nothing",
        _STUDIES + "inference_time.py",
        "weights = policy * np.exp(10 ** generator.uniform(-3, 0.5, size=(count, 1)) * walks)",
        "weights = policy * np.exp(10 ** generator.uniform(-3, 0.5, size=(count, 1)) * np.zeros_like(walks))",
        _STUDY_TESTS + "test_inference_time.py::test_perturbations_improve_a_policy_that_is_not_optimal",
    ),
    Bug(
        "best-of-n study: last sample taken instead of the best",
        _STUDIES + "best_of_n_theory.py",
        "selected = np.maximum(selected, samples)",
        "selected = samples",
        _STUDY_TESTS + "test_best_of_n.py::test_draws_of_best_of_n_spread_as_the_specification_says",
    ),
    Bug(
        "best-of-n study: KL of rejection for another win rate",
        _STUDIES + "best_of_n_theory.py",
        "-math.log(2 * (1 - win_rate))",
        "-math.log(1 - win_rate)",
        _STUDY_TESTS + "test_best_of_n.py::test_win_rates_have_the_kls_of_the_specification",
    ),
)

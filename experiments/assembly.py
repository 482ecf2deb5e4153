"""Builds the parts of a run from its config: model, plan, local training, aggregator, engine, federation."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from experiments import mechanism
from experiments.config import ADAPTIVITY, Config
from experiments.config_checks import RECURRENT_KEYS, TRANSFORMER_KEYS, require_expected_client
from experiments.config_model import DEFAULT_PRESET
from experiments.config_privacy import SAMPLING_PROBABILITY
from experiments.data import Data
from fl.aggregation import Aggregator, DPMean, ExampleWeightedMean, UniformMean
from fl.correlated_mean import CorrelatedDPMean
from fl.exact_mean import ExactDPMean
from fl.local_training import LanguageModelling, LocalSGD
from fl.rounds import Federation
from models.language_model import LanguageModel
from models.presets import preset, with_heads
from privacy import accounting
from privacy.keys import RunKeys
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson, Sampling


def build_model(config: Config, vocabulary_size: int, initial: LanguageModel | None = None) -> LanguageModel:
    """Builds the language model: the preset with the config's changes, for the run's vocabulary.

    Args:
      config: the run's config.
      vocabulary_size: number of token ids.
      initial: the model that `model.init` names; it is the model itself, or the base of its prediction heads.

    Raises:
      ValueError: the sizes do not fit each other, or the clients' sequences do not fit in the model's context.
    """
    model = _build_preset(config, vocabulary_size) if initial is None else initial
    length = config.clients.sequence_length
    if model.context is not None and length > model.context:
        raise ValueError(
            f"clients.sequence_length = {length} is more than the model's context of {model.context} tokens: lower it, "
            "or raise model.context"
        )
    return _add_heads(config, model)


def _add_heads(config: Config, model: LanguageModel) -> LanguageModel:
    """Returns the model with the prediction heads of the config, which are its own if it has heads already."""
    heads, length = config.model.prediction_heads, config.clients.sequence_length
    own = model.config().get("prediction_heads", 1)
    if own not in (1, heads):
        raise ValueError(
            f"model.prediction_heads = {heads}: the model of model.init has {own} prediction heads; give this number"
        )
    if heads > length:
        raise ValueError(
            f"model.prediction_heads = {heads} is more than clients.sequence_length = {length}, so that the last head "
            "would have nothing to predict: lower it"
        )
    return model if heads == own else with_heads(model, heads)


def _build_preset(config: Config, vocabulary_size: int) -> LanguageModel:
    section = config.model
    changes = {
        name: getattr(section, name)
        for name in ("embedding", *RECURRENT_KEYS, *TRANSFORMER_KEYS)
        if getattr(section, name) is not None
    }
    try:
        return preset(section.preset or DEFAULT_PRESET, vocabulary_size, **changes)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None


def build_local_sgd(config: Config) -> LocalSGD:
    """Builds the settings of a client's local training."""
    return LocalSGD(**msgspec.structs.asdict(config.clients))


def build_sampling(config: Config) -> Sampling:
    """Builds the rule by which cohorts are drawn."""
    section = config.cohort
    probability = SAMPLING_PROBABILITY if section.sampling_probability is None else section.sampling_probability
    # CohortConfig requires the keys that the chosen sampler needs.
    match section.sampler:
        case "poisson":
            return Poisson(probability)
        case "fixed-size":
            assert section.size is not None
            return FixedSize(section.size)
        case "cyclic":
            assert section.cohorts is not None
            return Cyclic(section.cohorts)
        case "cyclic-poisson":
            assert section.cohorts is not None
            return CyclicPoisson(section.cohorts, probability)
        case "check-in":
            assert section.size is not None and section.min_separation is not None
            return CheckIn(section.size, section.min_separation, section.max_participations)


def check_clients(config: Config, data: Data) -> str | None:
    """Checks that the cohorts fit the number of training clients, if that number is the plan's population.

    Returns:
      A warning if clients who check in cannot fill all rounds, otherwise None.

    Raises:
      ValueError: there are too few clients; one line, which also says what was left out of the data.
    """
    if config.cohort.population is not None:
        return None
    sampling, population = build_sampling(config), len(data.splits.train)
    try:
        _check_cohort(sampling, population)
    except ValueError as error:
        raise ValueError(f"{error}{data.store.statistics.left_out}") from None
    return _check_enough(sampling, population, config.run.rounds) if isinstance(sampling, CheckIn) else None


def _check_enough(sampling: CheckIn, population: int, rounds: int) -> str | None:
    """Returns a warning if the population is too small for full cohorts in all rounds."""
    # Within one separation, no client takes part twice.
    largest = min(
        population * sampling.max_participations(rounds) // rounds,
        population // min(sampling.min_separation, rounds),
    )
    if sampling.size <= largest:
        return None
    limit, fix = "", "cohort.size, run.rounds or cohort.min_separation"
    if sampling.participation_limit is not None:
        limit = f" and cohort.max_participations = {sampling.participation_limit}"
        fix += ", or raise cohort.max_participations"
    return (
        f"warning: cohort.size = {sampling.size:,}, but with cohort.min_separation = {sampling.min_separation}{limit}, "
        f"{population:,} clients fill run.rounds = {rounds:,} with at most {largest:,} each: later rounds have fewer "
        f"clients than planned, or noise alone; lower {fix}"
    )


def _check_cohort(sampling: Sampling, population: int) -> None:
    sampling.check(population)
    require_expected_client(sampling.expected_cohort(population))


def build_plan(
    config: Config, population: int, public: tuple[str, ...], begun: PrivacyPlan | None = None
) -> PrivacyPlan:
    """Builds the run's privacy plan. With `privacy.epsilon` the noise is calibrated to it.

    With a banded or BLT mechanism, the matrix with the least error is computed.

    Args:
      config: the run's config.
      population: number of training clients counted in the data; `cohort.population` takes precedence.
      public: what the plan declares public.
      begun: plan of a resumed run, from its ledger, whose noise multiplier and matrix are kept; None for a new run.

    Raises:
      ValueError: the settings do not fit the number of clients; the message names them.
    """
    section = config.privacy
    clip: FixedClip | AdaptiveClip | None = None
    if section.clip_norm is not None:
        clip = FixedClip(section.clip_norm)
        if section.clip_quantile is not None:
            clip = AdaptiveClip(section.clip_norm, section.clip_quantile, count_stddev=section.clip_count_stddev)
            if section.clip_learning_rate is not None:
                clip = dataclasses.replace(clip, learning_rate=section.clip_learning_rate)
    plan = PrivacyPlan(
        sampling=build_sampling(config),
        population=population if config.cohort.population is None else config.cohort.population,
        rounds=config.run.rounds,
        # With a budget, the noise is calibrated below.
        noise_multiplier=section.noise_multiplier or float(section.epsilon is not None),
        clip=clip,
        delta=section.delta,
        public=public,
        population_declared=config.cohort.population is not None,
    )
    _check_cohort(plan.sampling, plan.population)
    if section.mechanism != "gaussian":
        kept = None if begun is None else begun.mechanism
        plan = dataclasses.replace(plan, mechanism=mechanism.build_mechanism(config, plan.participation, kept))
    if section.epsilon is not None:
        plan = _with_noise_for(section.epsilon, plan, None if begun is None else begun.noise_multiplier)
    return dataclasses.replace(plan, metrics=_metrics(config), noise=section.noise)


def _with_noise_for(epsilon: float, plan: PrivacyPlan, noise_multiplier: float | None) -> PrivacyPlan:
    if noise_multiplier is None:
        return accounting.calibrate_noise(plan, epsilon)
    plan = dataclasses.replace(plan, noise_multiplier=noise_multiplier)
    if not accounting.epsilon(plan).value <= epsilon:
        raise ValueError(
            f"the ledger's noise multiplier {noise_multiplier:g} does not keep privacy.epsilon {epsilon:g}: it is "
            "another run's, restore this run's own"
        )
    return plan


def _metrics(config: Config) -> PrivateMetrics | None:
    section = config.privacy
    if not section.is_private or section.metrics_share == 0:
        return None
    default = PrivateMetrics()
    return PrivateMetrics(
        default.share if section.metrics_share is None else section.metrics_share,
        # The loss of a model with prediction heads is a sum over the heads.
        default.loss_bound * config.model.prediction_heads if section.loss_bound is None else section.loss_bound,
    )


def build_aggregator(config: Config, plan: PrivacyPlan) -> Aggregator:
    """Builds the aggregator that clips and adds noise as the plan says; without a clip norm, a plain mean."""
    if plan.noise == "exact":
        return ExactDPMean(plan)
    if plan.mechanism is not None:
        return CorrelatedDPMean(plan)
    if plan.clip is not None:
        return DPMean(plan)
    if config.server.weighting == "examples":
        return ExampleWeightedMean()
    return UniformMean()


def build_server_optimizer(config: Config) -> Any:
    """Builds the server's optimizer, one of `tff.learning.optimizers`."""
    import tensorflow_federated as tff

    section, kinds = config.server, tff.learning.optimizers
    epsilon = ADAPTIVITY if section.epsilon is None else section.epsilon
    match section.optimizer:
        case "momentum":
            optimizer = kinds.build_sgdm(section.learning_rate, mechanism.server_momentum(config))
        case "adam":
            optimizer = kinds.build_adam(section.learning_rate, epsilon=epsilon)
        case "yogi":
            optimizer = kinds.build_yogi(section.learning_rate, epsilon=epsilon)
        case "adagrad":
            optimizer = kinds.build_adagrad(section.learning_rate, epsilon=epsilon)
    if not section.cooldown:
        return optimizer
    rates = np.array(mechanism.relative_learning_rates(config)) * section.learning_rate

    def rate_of_round(number: Any) -> Any:
        import tensorflow as tf

        # The optimizer asks for the rate of the round after the last one, too.
        return tf.gather(tf.constant(rates, tf.float32), tf.minimum(number, len(rates) - 1))

    return kinds.schedule_learning_rate(optimizer, rate_of_round)


def load_keys(config: Config, path: Path, begun: bool) -> RunKeys:
    """Loads the run's keys from `path`, or draws and writes them if the run has not begun and `path` does not exist.

    New keys come from the operating system. With `run.fixed_key` the keys follow from that number, and no file is read
    or written.

    Raises:
      FileNotFoundError: the run has begun and its key file is missing.
    """
    if config.run.fixed_key is not None:
        return RunKeys.fixed(config.run.fixed_key)
    return RunKeys.load(path) if begun or path.exists() else RunKeys.create(path)


def build_task(config: Config, model: Any, plan: PrivacyPlan) -> LanguageModelling:
    """Builds what clients train, next-token prediction; it measures the accuracy only where the plan releases it."""
    sums: dict[str, Any] = {"loss_sum": model.loss_sum}
    if plan.metrics is not None and plan.metrics.accuracy:
        sums = {"loss_and_correct": model.loss_and_correct}
    return LanguageModelling(model.token_losses, config.clients.sequence_length, stacks=True, **sums)


def build_engine(config: Config, model: Any, weights: dict[str, Any], plan: PrivacyPlan, clients_at_once: int) -> Any:
    """Builds the `fl.engines.averaging.Engine` that runs the rounds, from given initial weights."""
    from fl.engines import cohort

    return cohort.build(
        build_task(config, model, plan),
        weights,
        build_local_sgd(config),
        build_aggregator(config, plan),
        build_server_optimizer(config),
        config.server.average_decay,
        shards=config.run.shards,
        clients_at_once=clients_at_once,
    )


def build_federation(
    config: Config, data: Data, plan: PrivacyPlan, keys: RunKeys, engine: Any, inputs: str
) -> Federation:
    """Builds the run's rounds on an engine of the same config; `inputs` is what `describe_inputs` returned."""
    clients = data.splits.train
    return Federation(
        engine.process,
        engine.client_values,
        plan,
        keys,
        clients,
        lambda client: data.training(clients[client]),
        build_local_sgd(config),
        inputs,
        engine.noise,
    )


def describe_inputs(config: Config, data: Data, weights: dict[str, Any], clients_at_once: int) -> str:
    """Returns `clients_at_once` and a digest of all else, besides plan and keys, that determines a round's result."""
    digest = hashlib.sha256(f"{config.data} {config.clients} {config.server} {data.store.digest}".encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return f"{digest.hexdigest()} clients_at_once={clients_at_once}"


def read_clients_at_once(inputs: str) -> int:
    """Reads `clients_at_once` from a ledger's inputs. Raises ValueError if they are not those of a run."""
    match = re.fullmatch(r"\w+ clients_at_once=(\d+)", inputs)
    if match is None:
        raise ValueError(
            f"the ledger's inputs are {inputs!r}, not those of fedspeak train: resume with the program that wrote them"
        )
    return int(match[1])

"""From a config to the parts of a run: model, plan, local training, aggregator, server optimizer, federation."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Config
from experiments.data import Data
from fl.aggregation import Aggregator, DPMean, ExampleWeightedMean, UniformMean
from fl.exact_mean import ExactDPMean
from fl.local_training import LanguageModelling, LocalSGD
from fl.rounds import Federation
from models.presets import preset
from privacy import accounting
from privacy.keys import RunKeys
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import Cyclic, FixedSize, Poisson, Sampling


def model(config: Config, vocabulary_size: int) -> Any:
    """The language model: the preset with the config's changes, its vocabulary that of the run."""
    wanted = config.model
    changes = {
        name: getattr(wanted, name)
        for name in ("cell", "embedding", "units", "layer_norm", "output_bias")
        if getattr(wanted, name) is not None
    }
    return dataclasses.replace(preset(wanted.preset, vocabulary_size), **changes)


def local_sgd(config: Config) -> LocalSGD:
    """What a client does."""
    return LocalSGD(**dataclasses.asdict(config.clients))


def sampling(config: Config) -> Sampling:
    """How cohorts are drawn."""
    wanted = config.cohort
    match wanted.sampler:
        case "poisson":
            return Poisson(0.1 if wanted.rate is None else wanted.rate)
        case "fixed-size":
            if wanted.size is None:
                raise ValueError('cohort.size is missing: cohort.sampler = "fixed-size" needs it')
            return FixedSize(wanted.size)
        case "cyclic":
            if wanted.cohorts is None:
                raise ValueError('cohort.cohorts is missing: cohort.sampler = "cyclic" needs it')
            return Cyclic(wanted.cohorts)


def check_clients(config: Config, data: Data) -> None:
    """Checks that the cohorts fit the training clients, where their number is the plan's population.

    Raises:
      ValueError: there are too few clients; one line, which says what was left out of the data too.
    """
    sampler = sampling(config)
    if config.cohort.population is None:
        try:
            _check_cohort(sampler, len(data.splits.train))
        except ValueError as error:
            raise ValueError(f"{error}{data.store.statistics.left_out}") from None


def _check_cohort(sampler: Sampling, population: int) -> None:
    sampler.check(population)
    if (expected := sampler.expected_cohort(population)) < 1:
        raise ValueError(f"cohort.rate gives {expected:.3g} clients a round on average: raise it")


def plan(
    config: Config, population: int, public: tuple[str, ...], noise_multiplier: float | None = None
) -> PrivacyPlan:
    """The run's promise. With `privacy.epsilon` the noise is calibrated to it, or was once: then it is given.

    Raises:
      ValueError: contradictory or impossible settings, named.
    """
    wanted = config.privacy
    if wanted.epsilon is not None and wanted.noise_multiplier is not None:
        raise ValueError(
            "privacy.epsilon and privacy.noise_multiplier are both set: one follows from the other, drop one"
        )
    private = wanted.epsilon is not None or (wanted.noise_multiplier or 0) > 0
    if (private or wanted.clip is not None) and config.server.weighting != "uniform":
        raise ValueError(
            'server.weighting is "examples" with privacy: a client with much text would move the mean by more than '
            'clip and noise cover; use "uniform"'
        )
    clip: FixedClip | AdaptiveClip | None = None
    if wanted.clip is not None:
        clip = FixedClip(wanted.clip)
        if wanted.clip_quantile is not None:
            rate = 0.2 if wanted.clip_learning_rate is None else wanted.clip_learning_rate
            clip = AdaptiveClip(wanted.clip, wanted.clip_quantile, rate, wanted.count_stddev)
    elif wanted.clip_quantile is not None:
        raise ValueError("privacy.clip_quantile needs privacy.clip, the clip norm of the first round: set it")
    elif private:
        raise ValueError("privacy.clip is missing: without a clip norm no noise protects a client")
    promised = PrivacyPlan(
        sampling=sampling(config),
        population=population if config.cohort.population is None else config.cohort.population,
        rounds=config.run.rounds,
        noise_multiplier=wanted.noise_multiplier or 0.0,
        clip=clip,
        delta=wanted.delta,
        public=public,
        population_declared=config.cohort.population is not None,
    )
    _check_cohort(promised.sampling, promised.population)
    if wanted.epsilon is not None:
        promised = _keeping(wanted.epsilon, promised, noise_multiplier)
    if wanted.noise == "exact" and not private:
        raise ValueError('privacy.noise is "exact" in a run that adds none: leave it out, or set privacy.epsilon')
    return dataclasses.replace(promised, metrics=_metrics(config, private), noise=wanted.noise)


def _keeping(epsilon: float, promised: PrivacyPlan, noise_multiplier: float | None) -> PrivacyPlan:
    if noise_multiplier is None:
        return accounting.calibrate_noise(promised, epsilon)
    promised = dataclasses.replace(promised, noise_multiplier=noise_multiplier)
    if not accounting.epsilon(promised).value <= epsilon:
        raise ValueError(
            f"the ledger's noise multiplier {noise_multiplier:g} does not keep privacy.epsilon {epsilon:g}: it is "
            "another run's, restore this run's own"
        )
    return promised


def _metrics(config: Config, private: bool) -> PrivateMetrics | None:
    wanted = config.privacy
    if not private:
        for name in ("metrics_share", "loss_bound"):
            if getattr(wanted, name) is not None:
                raise ValueError(f"privacy.{name} has no effect in a run that is not private: leave it out")
        return None
    if wanted.metrics_share == 0:
        return None
    usual = PrivateMetrics()
    return PrivateMetrics(
        usual.share if wanted.metrics_share is None else wanted.metrics_share,
        usual.loss_bound if wanted.loss_bound is None else wanted.loss_bound,
    )


def aggregator(config: Config, promised: PrivacyPlan) -> Aggregator:
    """Clipped and noised as promised; without a clip norm a plain mean."""
    if promised.noise == "exact":
        return ExactDPMean(promised)
    if promised.clip is not None:
        return DPMean(promised)
    if config.server.weighting == "examples":
        return ExampleWeightedMean()
    return UniformMean()


def server_optimizer(config: Config) -> Any:
    """The server's optimizer, of `tff.learning.optimizers`."""
    import tensorflow_federated as tff

    wanted, kinds = config.server, tff.learning.optimizers
    epsilon = 0.001 if wanted.epsilon is None else wanted.epsilon
    match wanted.optimizer:
        case "momentum":
            return kinds.build_sgdm(wanted.learning_rate, 0.9 if wanted.momentum is None else wanted.momentum)
        case "adam":
            return kinds.build_adam(wanted.learning_rate, epsilon=epsilon)
        case "yogi":
            return kinds.build_yogi(wanted.learning_rate, epsilon=epsilon)
        case "adagrad":
            return kinds.build_adagrad(wanted.learning_rate, epsilon=epsilon)


def keys(config: Config, path: Path, begun: bool) -> RunKeys:
    """The operator's secrets: drawn once from the operating system, read back ever after.

    Raises:
      FileNotFoundError: the run has begun and its key file is gone.
    """
    if config.run.fixed_key is not None:
        return RunKeys.fixed(config.run.fixed_key)
    return RunKeys.load(path) if begun or path.exists() else RunKeys.create(path)


def task(config: Config, vocabulary_size: int, promised: PrivacyPlan) -> LanguageModelling:
    """What the clients' training is for; with the accuracy only where it is released."""
    learner = model(config, vocabulary_size)
    sums: dict[str, Any] = {"loss_sum": learner.loss_sum}
    if promised.metrics is not None and promised.metrics.accuracy:
        sums = {"loss_and_correct": learner.loss_and_correct}
    return LanguageModelling(learner.token_losses, config.clients.sequence_length, stacks=True, **sums)


def engine(
    config: Config, vocabulary_size: int, weights: dict[str, Any], promised: PrivacyPlan, users_at_once: int
) -> Any:
    """The `fl.engines.averaging.Engine` that runs the rounds, from given initial weights."""
    from fl.engines import cohort

    return cohort.build(
        task(config, vocabulary_size, promised),
        weights,
        local_sgd(config),
        aggregator(config, promised),
        server_optimizer(config),
        config.server.average_decay,
        shards=config.run.shards,
        users_at_once=users_at_once,
    )


def federation(
    config: Config, data: Data, promised: PrivacyPlan, secrets: RunKeys, built: Any, inputs: str
) -> Federation:
    """The run's rounds on an engine, made from the same config and initial weights, which `inputs` names."""
    clients = data.splits.train
    return Federation(
        built.process,
        built.client_values,
        promised,
        secrets,
        clients,
        lambda client: data.training(clients[client]),
        local_sgd(config),
        inputs,
        built.noise,
    )


def inputs(config: Config, data: Data, weights: dict[str, Any], users_at_once: int) -> str:
    """Names all that a round's result follows from, besides plan and keys, for `fl.rounds.Federation`."""
    return f"{_inputs_digest(config, data, weights)} users_at_once={users_at_once}"


def users_at_once_of(inputs: str) -> int:
    """Reads the number of clients trained at once from a ledger's inputs. Raises ValueError if they are not a run's."""
    found = re.fullmatch(r"\w+ users_at_once=(\d+)", inputs)
    if found is None:
        raise ValueError(
            f"the ledger's inputs are {inputs!r}, not those of fedspeak train: resume with what wrote them"
        )
    return int(found[1])


def _inputs_digest(config: Config, data: Data, weights: dict[str, Any]) -> str:
    """SHA-256 of data, settings and initial weights."""
    digest = hashlib.sha256(f"{config.data} {config.clients} {config.server} {data.store.digest}".encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()

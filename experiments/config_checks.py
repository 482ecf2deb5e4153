"""Checks keys that must fit each other; each check raises ValueError with one line that names the keys and the fix.

`experiments.config` calls the checks when a section is read, so that a mistake is found before any data is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.config_fields import as_toml, require_only_for
from privacy.plan import MIN_METRICS_SHARE, NOISE_MULTIPLIERS, PrivateMetrics, least_count_stddev

if TYPE_CHECKING:
    from experiments.config import (
        CohortConfig,
        Config,
        DataConfig,
        ModelConfig,
        PretrainingConfig,
        PrivacyConfig,
        ServerConfig,
    )

RECURRENT_KEYS = ("cell", "units", "layer_norm", "output_bias")
TRANSFORMER_KEYS = ("blocks", "heads", "feed_forward", "context")
"""Keys of the section `model` that belong to one kind of preset."""


def check_data(section: DataConfig) -> None:
    """Checks that no key belongs to another source, and that there is a share of clients left to train on."""
    tables = ("jsonl", "csv", "parquet")
    require_only_for("data.user_column", section.user_column, section.source, tables)
    require_only_for("data.text_column", section.text_column, section.source, (*tables, "sqlite"))
    require_only_for("data.split", section.split, section.source, ("sqlite",))
    if section.validation + section.test >= 1:
        raise ValueError(
            f"data.validation = {section.validation:g} and data.test = {section.test:g} leave no clients in the train "
            "set: lower them"
        )


def check_model(section: ModelConfig, transformers: tuple[str, ...], default: str) -> None:
    """Checks that no key belongs to the other kind of preset, and that none stands beside `init`.

    Args:
      section: the keys.
      transformers: names of the presets that are transformers.
      default: preset where the section has none.
    """
    if section.init is not None:
        for name in ("preset", "embedding", *RECURRENT_KEYS, *TRANSFORMER_KEYS):
            if getattr(section, name) is not None:
                raise ValueError(f"model.{name} has no effect with model.init, which names a whole model: remove a key")
        return
    preset = default if section.preset is None else section.preset
    is_transformer = preset in transformers
    for name in RECURRENT_KEYS if is_transformer else TRANSFORMER_KEYS:
        if getattr(section, name) is not None:
            kind = "a transformer" if is_transformer else "recurrent"
            raise ValueError(f'model.{name} has no effect: model.preset = "{preset}" is {kind}; remove the key')


def check_pretraining(section: PretrainingConfig) -> None:
    """Checks that a batch has a sequence for each of its parts."""
    if section.accumulate > section.batch_size:
        raise ValueError(
            f"pretraining.accumulate = {section.accumulate} is more than pretraining.batch_size = "
            f"{section.batch_size}: lower it"
        )


def check_server(section: ServerConfig) -> None:
    """Checks that no key belongs to another optimizer."""
    require_only_for("server.momentum", section.momentum, section.optimizer, ("momentum",))
    require_only_for("server.epsilon", section.epsilon, section.optimizer, ("adam", "yogi", "adagrad"))


def check_cohort(section: CohortConfig, default_probability: float) -> None:
    """Checks that the sampler has its own keys and none of another's.

    Args:
      section: the keys.
      default_probability: sampling probability where the section has none.
    """
    for key, samplers in (
        ("sampling_probability", ("poisson", "cyclic-poisson")),
        ("size", ("fixed-size", "check-in")),
        ("population", ("poisson",)),
        ("cohorts", ("cyclic", "cyclic-poisson")),
        ("min_separation", ("check-in",)),
        ("max_participations", ("check-in",)),
    ):
        require_only_for(f"cohort.{key}", getattr(section, key), section.sampler, samplers)
    needed = {"fixed-size": ("size",), "check-in": ("size", "min_separation")}
    needed |= {"cyclic": ("cohorts",), "cyclic-poisson": ("cohorts",)}
    for key in needed.get(section.sampler, ()):
        if getattr(section, key) is None:
            raise ValueError(f'cohort.{key} is missing: cohort.sampler = "{section.sampler}" needs it')
    if section.sampler == "poisson" and section.population is not None:
        probability = default_probability if section.sampling_probability is None else section.sampling_probability
        require_expected_client(probability * section.population)


def require_expected_client(expected: float) -> None:
    """Raises ValueError if a round has fewer than one client on average."""
    if expected < 1:
        raise ValueError(f"cohort.sampling_probability gives {expected:.3g} clients per round on average: raise it")


def check_privacy(section: PrivacyConfig) -> None:
    """Checks that noise, clip norm and metrics do not contradict each other."""
    if section.epsilon is not None and section.noise_multiplier is not None:
        raise ValueError(
            "privacy.epsilon and privacy.noise_multiplier are both set: one follows from the other, drop one"
        )
    if 0 < (section.noise_multiplier or 0) < NOISE_MULTIPLIERS[0]:
        raise ValueError(
            f"privacy.noise_multiplier = {as_toml(section.noise_multiplier)}: must be 0, for no privacy, or at least "
            f"{NOISE_MULTIPLIERS[0]:g}"
        )
    if section.clip_quantile is None:
        for name in ("clip_learning_rate", "clip_count_stddev"):
            if getattr(section, name) is not None:
                raise ValueError(f"privacy.{name} has no effect without privacy.clip_quantile: remove the key")
    if section.clip_norm is None and section.clip_quantile is not None:
        raise ValueError("privacy.clip_quantile needs privacy.clip_norm, the clip norm of the first round: set it")
    if section.clip_norm is None and section.is_private:
        raise ValueError("privacy.clip_norm is missing: without a clip norm no noise protects a client")
    if section.noise == "exact" and not section.is_private:
        raise ValueError('privacy.noise is "exact" in a run that adds none: leave it out, or set privacy.epsilon')
    _check_metrics(section)
    _check_mechanism(section)


def _check_mechanism(section: PrivacyConfig) -> None:
    for key, mechanisms in (
        ("restart_every", ("tree",)),
        ("bands", ("banded",)),
        ("buffers", ("blt",)),
        ("optimize_for", ("banded", "blt")),
        ("horizon", ("banded", "blt")),
    ):
        require_only_for(f"privacy.{key}", getattr(section, key), section.mechanism, mechanisms)
    if section.mechanism == "gaussian":
        return
    shown = f'privacy.mechanism = "{section.mechanism}"'
    if not section.is_private:
        raise ValueError(f"{shown} in a run that adds no noise: leave it out, or set privacy.epsilon")
    if section.clip_quantile is not None:
        raise ValueError(
            f"privacy.clip_quantile = {section.clip_quantile:g} with {shown}: correlated noise is fixed before the "
            "run, and in the units of a changed clip norm that of earlier rounds would not cancel; remove "
            "privacy.clip_quantile"
        )
    if section.noise == "exact":
        raise ValueError(f'privacy.noise = "exact" with {shown}: correlated noise is no integer; remove privacy.noise')


def _check_metrics(section: PrivacyConfig) -> None:
    for name in ("metrics_share", "loss_bound"):
        if getattr(section, name) is not None and not section.is_private:
            raise ValueError(f"privacy.{name} has no effect in a run that is not private: leave it out")
    if section.loss_bound is not None and section.metrics_share == 0:
        raise ValueError("privacy.loss_bound has no effect with privacy.metrics_share = 0: remove the key")
    share = PrivateMetrics.share if section.metrics_share is None else section.metrics_share
    if 0 < share <= MIN_METRICS_SHARE:
        raise ValueError(
            f"privacy.metrics_share = {as_toml(share)}: must be 0, for no metrics, or above {MIN_METRICS_SHARE:g}"
        )
    if section.noise_multiplier and section.clip_count_stddev is not None:
        least = least_count_stddev(section.noise_multiplier, share)
        if not section.clip_count_stddev > least:
            raise ValueError(
                f"privacy.clip_count_stddev = {as_toml(section.clip_count_stddev)} leaves none of the privacy budget "
                f"(privacy.noise_multiplier = {as_toml(section.noise_multiplier)}) for the update: give more than "
                f"{least:g}"
            )


def check_together(config: Config) -> None:
    """Checks keys of different sections."""
    if config.privacy.mechanism != "gaussian" and config.cohort.sampler in ("poisson", "fixed-size"):
        raise ValueError(
            f'privacy.mechanism = "{config.privacy.mechanism}" with cohort.sampler = "{config.cohort.sampler}", which '
            'does not limit a client\'s rounds: use "cyclic", "cyclic-poisson" or "check-in"'
        )
    if config.privacy.optimize_for == "optimizer" and config.server.optimizer != "momentum":
        raise ValueError(
            f'privacy.optimize_for = "optimizer" with server.optimizer = "{config.server.optimizer}", which is not '
            'linear in the updates: use "prefix-sums", or the optimizer "momentum"'
        )
    if config.pretraining.freeze_base and (config.model.init is None or config.model.prediction_heads == 1):
        raise ValueError(
            "pretraining.freeze_base = true trains prediction heads on the model of model.init: set model.init, and "
            "model.prediction_heads to at least 2"
        )
    if config.model.init is not None and config.vocabulary != type(config.vocabulary)():
        key = "size" if config.vocabulary.of is None else "of"
        raise ValueError(
            f"vocabulary.{key} = {as_toml(getattr(config.vocabulary, key))} has no effect with model.init, whose "
            "vocabulary is used: remove the key"
        )
    if (config.privacy.is_private or config.privacy.clip_norm is not None) and config.server.weighting != "uniform":
        raise ValueError(
            'server.weighting is "examples" with privacy: a client with much text would move the mean by more than '
            'clip and noise cover; use "uniform"'
        )
    if config.privacy.noise == "exact" and config.run.clients_at_once not in (None, 1):
        raise ValueError(
            f'run.clients_at_once = {config.run.clients_at_once} with privacy.noise = "exact": use 1, or leave it '
            "out; a client's update may differ in its last bits if others are trained at the same time"
        )

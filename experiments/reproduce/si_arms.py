"""Defines what `fedspeak reproduce si` trains: arms (ways to train), the rates to choose from, and scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from experiments.config import SAMPLING_PROBABILITY, Config, PrivacyConfig, ServerConfig
from experiments.reproduce.si_models import MODELS, STANDARD, VARIANTS, model_section

CLIENT_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
_CLIENT_ADAM_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
_MOMENTUM_RATES = (0.1, 0.3, 1.0)
_PRIVATE_RATES = (0.3, 1.0, 3.0)  # larger, because clipped updates are smaller
_ADAM_RATES = (0.003, 0.01, 0.03)
SCALES_OF_WEIGHTS = (0.1, 10.0)
"""Factors of the initial weights of gates or blocks, besides 1."""
NOISE_MULTIPLIERS = (1.0, 2.0)
_CLIP_NORM, _QUANTILE = 0.5, 0.5
_MORE_CLIENTS, _LESS_TEXT = 4, 2
"""Private rounds have 4 times the clients, since noise falls with their number, with half the sequences each."""
MOMENTUM, PUBLIC = "momentum", "public start"


class Arm(NamedTuple):
    """Describes a way to train.

    Attributes:
      name: name of the arm.
      changes: keys of the config, such as "server.optimizer", with their values.
      client_rates: learning rates of the clients to choose from.
      server_rates: learning rates of the server to choose from; empty: that which the arm `MOMENTUM` chose.
      models: names of the models, of `si_models.MODELS`.
      starts_public: whether training begins with a model of the public text.
    """

    name: str
    changes: Mapping[str, Any]
    client_rates: tuple[float, ...]
    server_rates: tuple[float, ...]
    models: tuple[str, ...]
    starts_public: bool = False

    @property
    def is_private(self) -> bool:
        """Returns whether the arm adds noise."""
        return "privacy.noise_multiplier" in self.changes


class Scale(NamedTuple):
    """Describes how much is trained.

    Attributes:
      seeds: seeds of the final cells; choices are made with seed 0.
      blocks: number of blocks of the transformers.
      changes: keys of the shipped config `si`, with their values.
      thin: whether an arm has one rate to choose from (`MOMENTUM` two) and, but for `MOMENTUM`, no transformers.
    """

    seeds: tuple[int, ...]
    blocks: int
    changes: Mapping[str, Any]
    thin: bool = False


SCALES = {
    "smoke": Scale(
        (1, 2),
        1,
        {
            "vocabulary.size": 300,
            "model.embedding": 8,
            "model.units": 16,
            "pretraining.epochs": 1,
            "clients.sequence_length": 4,
            "clients.max_sequences": 8,
            "run.rounds": 4,
            "run.evaluate_every": 1,
        },
        thin=True,
    ),
    "small": Scale((1, 2, 3), 2, {}),
    "full": Scale(
        (1, 2, 3, 4, 5),
        6,
        {
            "vocabulary.size": 4000,
            "model.embedding": 256,
            "model.units": 2048,
            "clients.max_sequences": 64,
            "cohort.sampling_probability": 0.1,
            "run.rounds": 400,
            "run.evaluate_every": 10,
        },
    ),
}


class Cell(NamedTuple):
    """Names one training: an arm and a model with the learning rates of clients and server.

    `scale` is the factor of the initial weights of gates or blocks. Weights, cohorts and noise have the `seed`.
    """

    arm: str
    model: str
    client_rate: float
    server_rate: float
    scale: float = 1.0
    seed: int = 0


def arms(config: Config, scale: Scale) -> list[Arm]:
    """Returns the arms, in the order in which they are trained."""
    names = tuple(STANDARD)
    others = ("cifg", "si-cifg") if scale.thin else names
    momentum = {"server.optimizer": "momentum", "server.momentum": 0.9}
    adam = {"server.optimizer": "adam", "server.epsilon": 1e-4}
    found = [
        Arm(MOMENTUM, momentum, CLIENT_RATES, _MOMENTUM_RATES, names),
        Arm("adam", adam, CLIENT_RATES, _ADAM_RATES, others),
        Arm("proximal", {**momentum, "clients.proximal": 0.1}, CLIENT_RATES, (), others),
        Arm("client adam", {**momentum, "clients.optimizer": "adam"}, _CLIENT_ADAM_RATES, _MOMENTUM_RATES, ("cifg",)),
    ]
    private = {
        f"z = {noise:g}, {clip} clip": {**momentum, **_private_changes(config, noise, clip == "adaptive")}
        for noise in NOISE_MULTIPLIERS
        for clip in ("fixed", "adaptive")
    }
    found += [Arm(name, changes, CLIENT_RATES, _PRIVATE_RATES, others) for name, changes in private.items()]
    if config.pretraining.epochs:
        changes = private[f"z = {NOISE_MULTIPLIERS[0]:g}, fixed clip"]
        found.append(Arm(PUBLIC, changes, CLIENT_RATES, _PRIVATE_RATES, ("cifg", "si-cifg"), starts_public=True))
    found.append(Arm("variants", momentum, CLIENT_RATES, (), tuple(VARIANTS)))
    return [_thin(arm) for arm in found] if scale.thin else found


def _thin(arm: Arm) -> Arm:
    last = arm.client_rates[-2]
    rates = (arm.client_rates[1], last) if arm.name == MOMENTUM else (last,)
    models = arm.models[:2] if arm.name == "variants" else arm.models
    return arm._replace(client_rates=rates, server_rates=arm.server_rates[:1], models=models)


def _private_changes(config: Config, noise_multiplier: float, is_adaptive: bool) -> dict[str, Any]:
    probability = config.cohort.sampling_probability or SAMPLING_PROBABILITY
    return {
        "privacy.noise_multiplier": noise_multiplier,
        "privacy.clip_norm": config.privacy.clip_norm or _CLIP_NORM,
        "privacy.clip_quantile": _QUANTILE if is_adaptive else None,
        "privacy.delta": config.privacy.delta,
        "privacy.metrics_share": 0.0,
        "cohort.sampling_probability": min(_MORE_CLIENTS * probability, 1.0),
        "clients.max_sequences": max(config.clients.max_sequences // _LESS_TEXT, 1),
    }


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns the config with other values of some keys, such as "run.rounds".

    Raises:
      ValueError: the values do not fit each other.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    changed = {name: msgspec.structs.replace(getattr(config, name), **keys) for name, keys in sections.items()}
    return msgspec.structs.replace(config, **changed)


def configure(config: Config, scale: Scale, arm: Arm, cell: Cell) -> Config:
    """Returns the config of one cell, from the study's config.

    Raises:
      ValueError: the study's config asks for something that the study cannot compare.
    """
    if config.cohort.sampler != "poisson":
        raise ValueError(f'cohort.sampler = "{config.cohort.sampler}": the study draws Poisson cohorts, remove the key')
    model = MODELS[cell.model]
    bare = msgspec.structs.replace(
        config, privacy=PrivacyConfig(), server=ServerConfig(), model=model_section(config, model, scale.blocks)
    )
    rates = {"clients.learning_rate": cell.client_rate, "server.learning_rate": cell.server_rate}
    plain = {"clients.optimizer": "sgd", "clients.proximal": 0.0, "clients.weight_decay": model.weight_decay}
    return change(bare, {**plain, "run.fixed_key": cell.seed, **rates, **arm.changes})

"""Builds the correlated noise of a run from its config, for the server's optimizer if the config asks for it."""

from experiments.config import MOMENTUM, Config
from experiments.config_privacy import BANDS
from privacy.correlated.factorisation import BUFFERS, MAX_HORIZON, optimize_banded, optimize_blt
from privacy.correlated.mechanisms import BLT, Banded, Mechanism, Tree
from privacy.correlated.participation import Participation
from privacy.correlated.workload import Workload

LAST_RATE = 0.05
"""Learning rate of the last round of a cooldown, as a share of `server.learning_rate`."""


def server_momentum(config: Config) -> float:
    """Returns the server's momentum, for the optimizer "momentum"."""
    return MOMENTUM if config.server.momentum is None else config.server.momentum


def relative_learning_rates(config: Config) -> list[float]:
    """Returns the learning rate of each round as a share of `server.learning_rate`.

    It is 1 up to the cooldown, which is linear and ends at `LAST_RATE`, as in the experiments of Choquette-Choo et al.
    2022 (arXiv:2211.06530).
    """
    rounds = config.run.rounds
    falling = round(config.server.cooldown * rounds)
    steps = range(1, falling + 1)
    return [1.0] * (rounds - falling) + [1 - (1 - LAST_RATE) * step / falling for step in steps]


def build_mechanism(config: Config, participation: Participation, begun: Mechanism | None) -> Mechanism:
    """Returns the mechanism of a config whose `privacy.mechanism` is not "gaussian".

    Args:
      config: the run's config.
      participation: limits on a client's rounds.
      begun: mechanism of a resumed run, which is returned if the config asks for one of its kind and size; the search
        for the least error may end at other last digits on another machine.

    Raises:
      ValueError: the number of rounds is too large for the mechanism.
    """
    section = config.privacy
    bands, buffers = section.bands or BANDS, section.buffers or BUFFERS
    workload = _build_workload(config)
    match begun:
        case Banded() if section.mechanism == "banded" and begun.optimized_for == workload.describe():
            if begun.bands <= bands:
                return begun
        case BLT() if section.mechanism == "blt" and begun.optimized_for == workload.describe():
            if len(begun.decays) <= buffers:
                return begun
    sizes = (section.restart_every, section.bands, section.buffers)
    return choose_mechanism(section.mechanism, workload, participation, *sizes)


def choose_mechanism(
    kind: str,
    workload: Workload,
    participation: Participation,
    restart_every: int | None,
    bands: int | None,
    buffers: int | None,
) -> Mechanism:
    """Returns the mechanism "tree", "banded" or "blt", the latter two with the least error for a workload.

    Args:
      kind: name of the mechanism.
      workload: what the server computes.
      participation: limits on a client's rounds.
      restart_every: of a tree, the number of rounds after which a new one begins; None for one tree.
      bands: maximum number of bands; None for the default.
      buffers: maximum number of buffers of a BLT; None for the default.

    Raises:
      ValueError: a number is out of range.
    """
    match kind:
        case "tree":
            return Tree(restart_every)
        case "banded":
            return optimize_banded(bands or BANDS, workload, participation)
    return optimize_blt(buffers or BUFFERS, workload, participation)


def _build_workload(config: Config) -> Workload:
    rounds = config.privacy.horizon or min(config.run.rounds, MAX_HORIZON)
    if config.privacy.optimize_for != "optimizer":
        return Workload(rounds)
    rates = None
    if config.server.cooldown:
        known = relative_learning_rates(config)[:rounds]
        rates = tuple(known + known[-1:] * (rounds - len(known)))
    return Workload(rounds, momentum=server_momentum(config), learning_rates=rates)

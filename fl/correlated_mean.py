"""Averages clipped updates with correlated noise (DP-FTRL), for plans with a `mechanism`."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from fl import gaussian
from fl.aggregation import DPMean, State
from fl.correlated_noise import NoiseStream, build_stream


@dataclass(frozen=True)
class CorrelatedDPMean(DPMean):
    """Computes the mean of `DPMean` with noise that is correlated between the rounds.

    The rounds' clipped sums G are released as G + C^-1 Z, where C is the mechanism's matrix and Z is independent
    Gaussian noise of standard deviation `plan.value_noise_multiplier` * clip norm on each coordinate. That is a
    function of C G + Z, so that all rounds together cost one Gaussian mechanism with noise multiplier
    `plan.noise_multiplier`, zero-out, if no client takes part more often, or sooner again, than the plan's sampler
    allows.

    What the server does with the means, momentum and learning rates included, is post-processing. The history of the
    noise (`fl.correlated_noise`) is in the state that only the server sees: it must stay as secret as the noise.

    Reference: Kairouz et al. 2021, https://arxiv.org/abs/2103.00039; Denisov et al. 2022,
    https://arxiv.org/abs/2202.08312.

    Raises:
      ValueError: the plan has no mechanism.
      tf.errors.InvalidArgumentError: `server` is called for a round after the plan's last one.
    """

    _CORRELATED: ClassVar[bool] = True

    @functools.cached_property
    def _stream(self) -> NoiseStream:
        assert self.plan.mechanism is not None
        return build_stream(self.plan.mechanism, self.plan.rounds)

    def initial_history(self, weights: int) -> State:
        return self._stream.initial(weights)

    def _draw_update_noise(self, state: State, size: int, noise_seed: Any) -> tuple[Any, State]:
        history = {name: value for name, value in state.items() if name != "clip"}
        return self._stream.following(
            history, lambda name: gaussian.standard_normal(size, gaussian.stream(noise_seed, name))
        )

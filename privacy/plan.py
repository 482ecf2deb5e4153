"""Defines the privacy plan of a training run: what the run guarantees, fixed before it starts.

Cohort sampler, noise, ledger, accounting and report are all derived from the plan.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from privacy import checks, kinds
from privacy import sampling as samplers
from privacy.sampling import Relation, Sampling

if TYPE_CHECKING:
    import dp_accounting

    from privacy.correlated.mechanisms import Mechanism
    from privacy.correlated.participation import Participation
    from privacy.correlated.sensitivity import Sensitivity


Noise = Literal["floating-point", "exact"]

DELTA_EXPONENT = -1.1
COUNT_STDDEV_FRACTION = 0.05
MAX_ROUNDS = 1_000_000
NOISE_MULTIPLIERS = checks.NOISE_MULTIPLIERS
MIN_METRICS_SHARE = 1e-6
LOSS_BOUNDS = (1e-3, 1e6)


@dataclasses.dataclass(frozen=True)
class FixedClip:
    """Describes a fixed clip norm: each client's update is scaled down to an L2 norm of at most `clip_norm`.

    Attributes:
      clip_norm: L2 bound C on one client's update, above 0.
    """

    clip_norm: float
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("clip_norm", self.clip_norm, "give the largest L2 norm an update may keep")


@dataclasses.dataclass(frozen=True)
class AdaptiveClip:
    """Describes a clip norm that follows a quantile of the update norms, by a noised count of one bit per client.

    The clip norm is updated geometrically, as in Andrew et al. 2021, "Differentially private learning with adaptive
    clipping" (arXiv:1905.03871). A client's bit b is 1 if the norm of its update is at most the clip norm C, else 0.
    The bit is centred to b - 1/2, so that the sum of the bits, the count, has sensitivity 1/2.

    Attributes:
      initial_clip_norm: clip norm of the first round, above 0.
      quantile: target quantile of the update norms, in (0, 1); the default 0.5 follows the median.
      learning_rate: step size of the logarithm of the clip norm, above 0.
      count_stddev: standard deviation s_b of the noise on the count, above 0; None takes a twentieth of the expected
        cohort, as the paper recommends.
    """

    initial_clip_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_stddev: float | None = None
    kind: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("initial_clip_norm", self.initial_clip_norm, "give a first guess of the update norms")
        checks.between("quantile", self.quantile, 0, 1, "0.5 follows the median update norm")
        checks.positive("learning_rate", self.learning_rate, f"{AdaptiveClip.learning_rate:g} is usual")
        if self.count_stddev is not None:
            checks.positive("count_stddev", self.count_stddev, "leave it out for a twentieth of the cohort")


@dataclasses.dataclass(frozen=True)
class PrivateMetrics:
    """Describes the metrics that each round also releases with noise: training loss, accuracy and number of clients.

    For each metric, a client contributes one number x in [0, 1]. The pairs (x, 1 - x) are summed over clients. The L2
    norm of a pair is at most 1, and the noised sums give both the mean and the number of clients (Kulesza, Suresh and
    Wang 2024, arXiv:2312.06658).

    Attributes:
      share: share of a round's privacy budget, 1 / noise_multiplier², that the metrics take, in (1e-6, 1); the rest
        is left for the model's update and, with adaptive clipping, the count.
      loss_bound: public bound on a client's mean loss, in nats per token, in (1e-3, 1e6); a larger loss is
        clamped to it.
      accuracy: whether the accuracy is released in addition to the loss.
    """

    share: float = 0.02
    loss_bound: float = 10.0
    accuracy: bool = True

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.between("share", self.share, MIN_METRICS_SHARE, 1, "0.02 costs the update 1 % more noise")
        checks.between(
            "loss_bound", self.loss_bound, *LOSS_BOUNDS, "10 nats is above the loss of a guess among 20,000 words"
        )
        if not isinstance(self.accuracy, bool):
            raise ValueError(f"accuracy is {self.accuracy!r}: give True or False")

    @property
    def count(self) -> int:
        """Returns the number of pairs released per round."""
        return 2 if self.accuracy else 1


def least_count_stddev(noise_multiplier: float, metrics_share: float) -> float:
    """Returns the bound above which `AdaptiveClip.count_stddev` must lie.

    At this standard deviation the count and the metrics take the whole privacy budget of a round, which leaves none for
    the update.

    Args:
      noise_multiplier: total noise multiplier of the plan.
      metrics_share: `PrivateMetrics.share`, 0 without metrics, in [0, 1).
    """
    return noise_multiplier / (2 * math.sqrt(1 - metrics_share))


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """Describes what a training run guarantees, fixed before it starts.

    The mechanism is the Gaussian mechanism on sums of clipped updates. Each round releases the sum plus N(0, (z_v C)²
    I), divided by the fixed `expected_cohort` (never by the size of the realised cohort). Here C is the clip norm and
    z_v is `value_noise_multiplier`. With adaptive clipping, a round also releases the noised count, and with `metrics`
    the noised sums of their pairs. With `mechanism`, the noise of the rounds is correlated (DP-FTRL), and the
    guarantee follows from the limits on participation that the sampler keeps.

    Attributes:
      sampling: how cohorts are drawn; it determines `relation`.
      population: number N of clients who could take part, at least 2. N is published, because δ and the expected
        cohort follow from it.
      rounds: number T of planned rounds, 1 to 1,000,000.
      noise_multiplier: total z = standard deviation of the noise / clip norm, 1e-6 to 1e8, or 0 for no privacy. With
        adaptive clipping or metrics, z covers everything that a round releases, and the noise on the update has the
        larger multiplier `value_noise_multiplier`. With `mechanism`, z is relative to the sensitivity of all rounds
        together: the whole run costs as much as one Gaussian release with noise multiplier z.
      clip: fixed or adaptive clip norm; None (no clipping) only together with noise_multiplier 0.
      delta: δ of the guarantee, in (0, 1); None is replaced by population**-1.1.
      public: what was declared public and is not accounted for, for instance the text from which a vocabulary was
        learned.
      metrics: metrics that each round also releases; None for none.
      noise: "floating-point" for float32 sums and float32 noise, whose distance to exact Gaussian noise
        `privacy.noise.training` states; "exact" for integer sums and rounded exact Gaussian noise (`fl.exact_mean`),
        which are hardened against floating-point attacks.
      population_declared: True if `population` is a public number, declared without looking at the data, so that the
        run would be the same with one client more or fewer; ε then covers the true number of clients. False if the
        clients were counted; under add-or-remove-one ε then does not cover the count.
      relation: neighbouring relation of the guarantee; None takes the sampler's. A relation other than the sampler's
        is refused, never converted.
      unit: what is protected; only "client" is supported, a client with all its text.
      mechanism: correlated noise of `privacy.correlated`, for cyclic, cyclic Poisson and check-in sampling; None for
        noise that is independent in each round.
    """

    sampling: Sampling
    population: int
    rounds: int
    noise_multiplier: float
    clip: FixedClip | AdaptiveClip | None
    delta: float | None = None
    public: tuple[str, ...] = ()
    metrics: PrivateMetrics | None = None
    noise: Noise = "floating-point"
    population_declared: bool = False
    relation: Relation | None = None
    unit: Literal["client"] = "client"
    mechanism: Mechanism | None = None

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("population", self.population, 2, "count the clients who could take part")
        if checks.whole("rounds", self.rounds, 1, "plan at least one round") > MAX_ROUNDS:
            raise ValueError(f"rounds must be at most {MAX_ROUNDS:,}, got {self.rounds:,}: plan fewer")
        fix = "0 switches privacy off, 1 is a usual start"
        if checks.non_negative("noise_multiplier", self.noise_multiplier, fix) > 0:
            checks.noise_multiplier(self.noise_multiplier, fix)
        if self.unit != "client":
            raise ValueError(f"unit must be 'client', got {self.unit!r}: cohorts consist of clients")
        if self.relation not in (None, self.sampling.relation):
            raise ValueError(
                f"relation {self.relation!r} has no accounting under {self.sampling.kind} sampling: "
                f"leave it out to get {self.sampling.relation!r}"
            )
        self.sampling.check(self.population)
        object.__setattr__(self, "relation", self.sampling.relation)
        object.__setattr__(self, "public", tuple(self.public))
        if self.delta is None:
            object.__setattr__(self, "delta", self.population**DELTA_EXPONENT)
        checks.between("delta", self.target_delta, 0, 1, f"leave it out for population**{DELTA_EXPONENT}")
        if self.clip is None and self.noise_multiplier > 0:
            raise ValueError(
                f"clip is None but noise_multiplier is {self.noise_multiplier:g}: give FixedClip or AdaptiveClip, "
                "without a clip norm no noise protects a client"
            )
        if not isinstance(self.metrics, (PrivateMetrics, type(None))):
            raise ValueError(f"metrics is {self.metrics!r}: give PrivateMetrics or None")
        if self.metrics is not None and not self.is_private:
            raise ValueError("metrics is given but noise_multiplier is 0: leave it out, it is for private runs")
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise is {self.noise!r}: give one of {', '.join(map(repr, get_args(Noise)))}")
        if self.noise == "exact" and not self.is_private:
            raise ValueError("noise is 'exact' but noise_multiplier is 0: leave out noise, or raise noise_multiplier")
        if not isinstance(self.population_declared, bool):
            raise ValueError(f"population_declared is {self.population_declared!r}: give True or False")
        if self.mechanism is not None:
            from privacy.correlated.mechanisms import check_fits

            check_fits(self.mechanism, self)
        least = least_count_stddev(self.noise_multiplier, self.metrics_share)
        if isinstance(self.clip, AdaptiveClip) and self.is_private and not self.count_stddev > least:
            raise ValueError(
                f"count_stddev {self.count_stddev:g} of the clip leaves none of the privacy budget (noise_multiplier "
                f"{self.noise_multiplier:g}) for the update: give more than {least:g}"
            )

    @property
    def is_private(self) -> bool:
        """Returns whether the plan adds noise."""
        return self.noise_multiplier > 0

    @property
    def target_delta(self) -> float:
        """Returns `delta` as a float; it is never None once the plan exists."""
        assert self.delta is not None
        return self.delta

    @property
    def delta_rule(self) -> str:
        """Returns how delta was chosen, for printing beside it: "population^-1.1" or "given"."""
        by_rule = self.target_delta == self.population**DELTA_EXPONENT
        return f"population^{DELTA_EXPONENT}" if by_rule else "given"

    @property
    def expected_cohort(self) -> float:
        """Returns the expected number of clients per round, the public and fixed denominator of every round's mean."""
        return self.sampling.expected_cohort(self.population)

    @property
    def any_population(self) -> bool:
        """Returns whether the data may hold any number of clients.

        That is so if `population` was declared and each client joins independently of all others (Poisson sampling).
        """
        return self.population_declared and isinstance(self.sampling, samplers.Poisson)

    @property
    def max_participations(self) -> int:
        """Returns the maximum number of rounds in which one client can take part over the whole plan."""
        return self.sampling.max_participations(self.rounds)

    @property
    def participation(self) -> Participation:
        """Returns the limits on the rounds of one client, which the sampler keeps and the ledger enforces."""
        from privacy.correlated.participation import Participation

        return Participation(self.sampling.min_separation, self.max_participations)

    def sensitivity(self, rounds: int) -> Sensitivity:
        """Returns the sensitivity of the mechanism's first `rounds` rounds, in clip norms; it needs a mechanism."""
        from privacy.correlated.mechanisms import cached_sensitivity

        assert self.mechanism is not None
        return cached_sensitivity(self.mechanism, rounds, self.participation)

    @property
    def count_stddev(self) -> float:
        """Returns the standard deviation s_b of the noise on the count of adaptive clipping.

        It is 0 with a fixed clip norm and without privacy.
        """
        if not isinstance(self.clip, AdaptiveClip) or not self.is_private:
            return 0.0
        given = self.clip.count_stddev
        return COUNT_STDDEV_FRACTION * self.expected_cohort if given is None else given

    @property
    def value_noise_multiplier(self) -> float:
        """Returns the standard deviation of the noise on the update's sum, divided by the clip norm.

        It is ((1 - share) z^-2 - (2 s_b)^-2)^-1/2, which is z with a fixed clip norm and without metrics. All releases
        of a round together then cost exactly as much as one Gaussian release with noise multiplier z
        (arXiv:1905.03871, theorem 1). With a mechanism it is (1 - share)^-1/2 z times the sensitivity of all rounds,
        and the standard deviation is that of the independent noise before it is correlated.
        """
        if not self.is_private:
            return 0.0
        if self.mechanism is not None:
            return self.noise_multiplier * self.sensitivity(self.rounds).value / math.sqrt(1 - self.metrics_share)
        if not isinstance(self.clip, AdaptiveClip) and self.metrics is None:
            return float(self.noise_multiplier)
        count = (2 * self.count_stddev) ** -2 if self.count_stddev else 0.0
        return ((1 - self.metrics_share) * self.noise_multiplier**-2 - count) ** -0.5

    @property
    def metric_noise_multiplier(self) -> float:
        """Returns the standard deviation of the noise on each number of each pair of `metrics`; 0 without metrics."""
        if self.metrics is None:
            return 0.0
        # With a mechanism, z covers all rounds of a client. Its metrics have independent noise in each.
        rounds = 1 if self.mechanism is None else self.max_participations
        return self.noise_multiplier * math.sqrt(rounds * self.metrics.count / self.metrics.share)

    @property
    def metrics_share(self) -> float:
        """Returns the share of the privacy budget that the metrics take; 0 without metrics."""
        return 0.0 if self.metrics is None else self.metrics.share

    def dp_event(self, rounds: int | None = None) -> dp_accounting.DpEvent:
        """Returns the run as a `dp_accounting` event over `rounds` rounds (default: all planned).

        The event's noise multipliers are relative to the sensitivity under the plan's relation. Adding a client moves
        the sum by up to C and replacing one by up to 2 C, so the multiplier is halved for fixed-size sampling. Give the
        event to an accountant for the plan's relation: dp-accounting's ADD_OR_REMOVE_ONE, REPLACE_ONE, or for zero-out
        REPLACE_SPECIAL. No event describes correlated noise; with a mechanism the event is one that accountants refuse.
        """
        import dp_accounting as dp

        count = self.rounds if rounds is None else checks.whole("rounds", rounds, 0, "count those that ran")
        if count == 0:
            return dp.NoOpDpEvent()
        if not self.is_private:
            return dp.NonPrivateDpEvent()
        if self.mechanism is not None:
            return dp.UnsupportedDpEvent()
        one = self.sampling.dp_event(self.population, self.noise_multiplier)
        return dp.SelfComposedDpEvent(one, self.sampling.repetitions(count))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a JSON-able dict, which `from_dict` turns back into the plan."""
        clip = None if self.clip is None else {"kind": self.clip.kind, **dataclasses.asdict(self.clip)}
        mechanism = {} if self.mechanism is None else {"mechanism": self.mechanism.to_dict()}
        return {
            "unit": self.unit,
            "relation": self.relation,
            "sampling": samplers.to_dict(self.sampling),
            "population": self.population,
            "rounds": self.rounds,
            "noise_multiplier": self.noise_multiplier,
            "clip": clip,
            "delta": self.delta,
            "public": list(self.public),
            "metrics": None if self.metrics is None else dataclasses.asdict(self.metrics),
            "noise": self.noise,
            "population_declared": self.population_declared,
            **mechanism,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PrivacyPlan:
        """Returns the plan that `to_dict` wrote.

        Raises:
          ValueError: a field is missing, unknown or out of range.
        """
        fields: dict[str, Any] = {"mechanism": None, **data}
        names = {f.name for f in dataclasses.fields(PrivacyPlan)}
        if set(fields) != names:
            raise ValueError(
                f"the privacy plan has missing or unknown fields {sorted(set(fields) ^ names)}: use the version of "
                "fedspeak that wrote it"
            )
        clip = fields.pop("clip")
        if clip is not None:
            clip = kinds.from_dict("clip", clip, {FixedClip.kind: FixedClip, AdaptiveClip.kind: AdaptiveClip})
        if (metrics := fields.pop("metrics")) is not None:
            try:
                metrics = PrivateMetrics(**metrics)
            except TypeError:
                raise ValueError(f"metrics {metrics!r} do not fit: give the fields of PrivateMetrics") from None
        sampling = samplers.from_dict(fields.pop("sampling"))
        if not isinstance(public := fields.pop("public"), (list, tuple)):
            raise ValueError(f"public is {public!r}: give a list of what is declared public")
        if (mechanism := fields.pop("mechanism")) is not None:
            from privacy.correlated.mechanisms import from_dict

            mechanism = from_dict(mechanism)
        return PrivacyPlan(
            sampling=sampling, clip=clip, metrics=metrics, public=tuple(public), mechanism=mechanism, **fields
        )

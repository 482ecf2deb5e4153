"""The privacy plan: the promise of a run, from which sampler, noise, ledger, accounting and report all
follow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from privacy import checks
from privacy import sampling as samplers
from privacy.sampling import Relation, Sampling

if TYPE_CHECKING:
    import dp_accounting


Noise = Literal["floating-point", "exact"]

DELTA_EXPONENT = -1.1
COUNT_STDDEV_FRACTION = 0.05
MOST_ROUNDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class FixedClip:
    """Each client's update is scaled down to L2 norm at most `norm`.

    Attributes:
      clip_norm: clip norm C, above 0.
    """

    clip_norm: float
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("clip norm", self.clip_norm, "give the largest L2 norm an update may keep")


@dataclasses.dataclass(frozen=True)
class AdaptiveClip:
    """The clip norm follows a quantile of the update norms, learned privately from one noised bit a client.

    Geometric update of Andrew et al. 2021, "Differentially private learning with adaptive clipping"
    (arXiv:1905.03871): the bit b = [norm <= C] is centred to b - 1/2, so that the count has sensitivity
    1/2, and noised with `count_stddev`.

    Attributes:
      initial_clip_norm: first clip norm, above 0.
      quantile: target quantile of the update norms, in (0, 1).
      learning_rate: geometric step, above 0.
      count_stddev: standard deviation s_b of the noise on the count, above 0; None takes a twentieth of the
        expected cohort as that paper recommends.
    """

    initial_clip_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_stddev: float | None = None
    kind: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("initial clip norm", self.initial_clip_norm, "give a first guess of the update norms")
        checks.between("clip quantile", self.quantile, 0, 1, "0.5 follows the median update norm")
        checks.positive("clip learning rate", self.learning_rate, "0.2 is customary")
        if self.count_stddev is not None:
            checks.positive("clip count stddev", self.count_stddev, "leave it out for a twentieth of the cohort")


@dataclasses.dataclass(frozen=True)
class PrivateMetrics:
    """Each round also releases the training loss, the accuracy and the number of its clients, privately.

    A metric is one number x in [0, 1] a client, and the pair (x, 1 - x) is summed over clients: its L2 norm is at most
    1, and the noised sums give the mean and, as a by-product, the number of clients (Kulesza, Suresh and Wang 2024,
    arXiv:2312.06658).

    Attributes:
      share: of what a round may tell, 1 / noise_multiplier², in (1e-6, 1); the model's update gets the rest.
      loss_bound: public, in (1e-3, 1e6), in nats a token: a client's mean loss above it counts as this.
      accuracy: whether it is released, besides the loss.
    """

    share: float = 0.02
    loss_bound: float = 10.0
    accuracy: bool = True

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.between("metrics share", self.share, 1e-6, 1, "0.02 costs the update 1 % more noise")
        checks.between(
            "loss bound", self.loss_bound, 1e-3, 1e6, "10 nats is more than a guess among 20,000 words loses"
        )
        if not isinstance(self.accuracy, bool):
            raise ValueError(f"accuracy is {self.accuracy!r}: give True or False")

    @property
    def count(self) -> int:
        """Pairs a round."""
        return 2 if self.accuracy else 1


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """What a training run promises before it starts.

    The mechanism is the Gaussian sum of clipped updates: each round releases sum of clipped updates + N(0,
    (z_v C)^2 I), divided by the fixed `expected_cohort` (never by the realised size), with adaptive clipping
    also the noised count, and the noised pairs of `metrics`.

    Attributes:
      sampling: how cohorts are chosen; it determines `relation`.
      population: number N of clients who could take part, at least 2. It is published: δ and the expected cohort follow
        from it.
      rounds: number T of rounds planned, 1 to 1,000,000.
      noise_multiplier: total z = noise standard deviation / clip norm, 1e-6 to 1e8, or 0, which gives no privacy. With
        adaptive clipping or metrics it covers all that a round releases, and the noise on the update is
        `value_noise_multiplier`.
      clip: fixed or adaptive; None (no clipping) only together with noise_multiplier 0.
      delta: in (0, 1); None takes population**-1.1 and is replaced by that number.
      public: what was declared public and is outside the accounting, for instance the text a vocabulary was
        learned from.
      metrics: what else each round releases; None: nothing.
      noise: "floating-point": float32 sums and noise, the latter as near to exact Gaussian noise as
        `privacy.noise.training` says. "exact": integer sums and rounded exact Gaussian noise (`fl.exact_mean`),
        hardened against floating-point attacks.
      population_declared: True if `population` is a public number, declared without looking at the data, so that with
        one client more or fewer the run would be the same: ε then covers how many there really are. False if it was
        counted; under add-or-remove-one ε then does not cover the count.
      relation: the neighbouring relation; None takes the sampler's. Any other value is refused, never
        converted.
      unit: whose data is protected.
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

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("population", self.population, 2, "count the clients who could take part")
        if checks.whole("rounds", self.rounds, 1, "plan at least one round") > MOST_ROUNDS:
            raise ValueError(f"rounds must be at most {MOST_ROUNDS:,}, got {self.rounds:,}: plan fewer")
        mend = "0 switches privacy off, 1 is a usual start"
        if checks.non_negative("noise multiplier", self.noise_multiplier, mend) > 0:
            checks.noise_multiplier(self.noise_multiplier, mend)
        if self.unit != "client":
            raise ValueError(f"unit must be 'client', got {self.unit!r}: cohorts here are made of clients")
        if self.relation not in (None, self.sampling.relation):
            raise ValueError(
                f"relation {self.relation!r} has no accounting under {self.sampling.kind} sampling: "
                f"leave it out for {self.sampling.relation!r}"
            )
        self.sampling.check(self.population)
        object.__setattr__(self, "relation", self.sampling.relation)
        object.__setattr__(self, "public", tuple(self.public))
        if self.delta is None:
            object.__setattr__(self, "delta", self.population**DELTA_EXPONENT)
        checks.between("delta", self.target_delta, 0, 1, f"leave it out for population**{DELTA_EXPONENT}")
        if self.clip is None and self.noise_multiplier > 0:
            raise ValueError("clip must be given with noise: without a clip norm no noise protects a client")
        if not isinstance(self.metrics, (PrivateMetrics, type(None))):
            raise ValueError(f"metrics are {self.metrics!r}: give PrivateMetrics, or None")
        if self.metrics is not None and not self.is_private:
            raise ValueError("metrics are given and there is no noise: they are for private runs, leave them out")
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise is {self.noise!r}: give one of {', '.join(map(repr, get_args(Noise)))}")
        if self.noise == "exact" and not self.is_private:
            raise ValueError("noise is 'exact' and the noise multiplier is 0: there is no noise, leave it out")
        if not isinstance(self.population_declared, bool):
            raise ValueError(f"population_declared is {self.population_declared!r}: give True or False")
        least = self.noise_multiplier / (2 * math.sqrt(1 - self._metrics_share))
        if isinstance(self.clip, AdaptiveClip) and self.is_private and not self.count_stddev > least:
            raise ValueError(
                f"clip count stddev {self.count_stddev:g} leaves the update no noise: take more than {least:g}"
            )

    @property
    def is_private(self) -> bool:
        """False exactly when the plan adds no noise."""
        return self.noise_multiplier > 0

    @property
    def target_delta(self) -> float:
        """`delta` as the number in force."""
        assert self.delta is not None
        return self.delta

    @property
    def delta_rule(self) -> str:
        """How delta came about, for printing beside it."""
        by_rule = self.target_delta == self.population**DELTA_EXPONENT
        return f"population^{DELTA_EXPONENT}" if by_rule else "given"

    @property
    def expected_cohort(self) -> float:
        """The public, fixed denominator of every round's mean."""
        return self.sampling.expected_cohort(self.population)

    @property
    def any_population(self) -> bool:
        """Whether the data may hold any number of clients: it was declared, and each joins by a coin of its own."""
        return self.population_declared and isinstance(self.sampling, samplers.Poisson)

    @property
    def max_participations(self) -> int:
        """Most rounds one client can be in over the whole plan."""
        return self.sampling.max_participations(self.rounds)

    @property
    def count_stddev(self) -> float:
        """Noise standard deviation s_b on the count of adaptive clipping; 0 with a fixed clip or without
        privacy.
        """
        if not isinstance(self.clip, AdaptiveClip) or not self.is_private:
            return 0.0
        given = self.clip.count_stddev
        return COUNT_STDDEV_FRACTION * self.expected_cohort if given is None else given

    @property
    def value_noise_multiplier(self) -> float:
        """Noise standard deviation on the update / clip norm: ((1 - share) z^-2 - (2 s_b)^-2)^-1/2, which is z with a
        fixed clip and without metrics.

        All noises together then cost exactly one Gaussian of multiplier z (arXiv:1905.03871, theorem 1).
        """
        if not self.is_private:
            return 0.0
        if not isinstance(self.clip, AdaptiveClip) and self.metrics is None:
            return float(self.noise_multiplier)
        count = (2 * self.count_stddev) ** -2 if self.count_stddev else 0.0
        return ((1 - self._metrics_share) * self.noise_multiplier**-2 - count) ** -0.5

    @property
    def metric_noise_multiplier(self) -> float:
        """Noise standard deviation on each number of each pair of `metrics`; 0 without."""
        if self.metrics is None:
            return 0.0
        return self.noise_multiplier * math.sqrt(self.metrics.count / self.metrics.share)

    @property
    def _metrics_share(self) -> float:
        return 0.0 if self.metrics is None else self.metrics.share

    def dp_event(self, rounds: int | None = None) -> dp_accounting.DpEvent:
        """The run as a `dp_accounting` event for `rounds` rounds (default: all).

        Noise multipliers in the event are relative to the sensitivity under the plan's relation. Replacing
        a client moves the sum by up to 2C where adding one moves it by C, hence the halved multiplier for
        fixed-size sampling. Feed it to an accountant of that relation; `privacy.accounting.epsilon` does.
        """
        import dp_accounting as dp

        count = self.rounds if rounds is None else checks.whole("rounds", rounds, 0, "count those that ran")
        if count == 0:
            return dp.NoOpDpEvent()
        if not self.is_private:
            return dp.NonPrivateDpEvent()
        one = self.sampling.dp_event(self.population, self.noise_multiplier)
        return dp.SelfComposedDpEvent(one, self.sampling.repetitions(count))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` gives the plan back."""
        clip = None if self.clip is None else {"kind": self.clip.kind, **dataclasses.asdict(self.clip)}
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
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PrivacyPlan:
        """Inverse of `to_dict`; raises ValueError naming what is missing, unknown or out of range."""
        fields = dict(data)
        names = {f.name for f in dataclasses.fields(PrivacyPlan)}
        if set(fields) != names:
            raise ValueError(
                f"privacy plan fields differ at {sorted(set(fields) ^ names)}: take the plan of this version"
            )
        clip = fields.pop("clip")
        if clip is not None:
            clip = dict(clip)
            kinds: dict[Any, Any] = {FixedClip.kind: FixedClip, AdaptiveClip.kind: AdaptiveClip}
            kind = clip.pop("kind", None)
            if kind not in kinds:
                raise ValueError(f"clip kind {kind!r} is unknown: use one of {', '.join(kinds)}")
            try:
                clip = kinds[kind](**clip)
            except TypeError:
                raise ValueError(f"clip fields {sorted(clip)} do not fit kind {kind!r}: see privacy.plan") from None
        metrics = fields.pop("metrics")
        if metrics is not None:
            try:
                metrics = PrivateMetrics(**metrics)
            except TypeError:
                raise ValueError(f"metrics {metrics!r} do not fit: see privacy.plan.PrivateMetrics") from None
        sampling = samplers.from_dict(fields.pop("sampling"))
        public = tuple(fields.pop("public"))
        return PrivacyPlan(sampling=sampling, clip=clip, metrics=metrics, public=public, **fields)

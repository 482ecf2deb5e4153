"""Defines the sections of a configuration that describe cohorts and privacy."""

from typing import Annotated, Literal

from msgspec import Meta

from experiments import config_checks
from experiments.config_fields import Section, at_least, open_share, positive, share, text
from privacy.correlated.factorisation import BUFFERS, MAX_HORIZON
from privacy.correlated.mechanisms import MAX_BANDS, MAX_BUFFERS
from privacy.plan import DELTA_EXPONENT, LOSS_BOUNDS, NOISE_MULTIPLIERS, AdaptiveClip, PrivateMetrics

SAMPLING_PROBABILITY = 0.1
BANDS = 16


class CohortConfig(Section, frozen=True):
    """Who takes part in a round."""

    sampler: Annotated[
        Literal["poisson", "fixed-size", "cyclic", "cyclic-poisson", "check-in"],
        text(
            "How cohorts are drawn. `check-in` stands for devices that come when they can: each round takes any "
            "clients who may take part again."
        ),
    ] = "poisson"
    sampling_probability: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=1,
                description="`poisson`, `cyclic-poisson`: probability with which each client, or each client of the "
                f"cohort whose turn it is, joins a round. Default: {SAMPLING_PROBABILITY}.",
            ),
        ]
        | None
    ) = None
    size: Annotated[int, at_least(1, "`fixed-size`: clients per round; `check-in`: their maximum.")] | None = None
    cohorts: (
        Annotated[
            int,
            at_least(
                1,
                "`cyclic`, `cyclic-poisson`: number of cohorts that take turns; two rounds in which the same client "
                "takes part are at least this many rounds apart.",
            ),
        ]
        | None
    ) = None
    min_separation: (
        Annotated[
            int,
            at_least(
                1,
                "`check-in`: smallest difference of the numbers of two rounds in which the same client takes part; 1 "
                "allows every round.",
            ),
        ]
        | None
    ) = None
    max_participations: (
        Annotated[
            int,
            at_least(
                1,
                "`check-in`: maximum number of rounds of a client. Default: as many as `min_separation` allows in "
                "`run.rounds`.",
            ),
        ]
        | None
    ) = None
    population: (
        Annotated[
            int,
            at_least(
                2,
                "`poisson`: number of clients N as a public number, declared without looking at the data, near "
                "the true one. δ and the denominator of the mean follow from it, and ε covers how "
                "many clients there really are. Default: the clients are counted, and the report says that ε does not "
                "cover the count.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        config_checks.check_cohort(self, SAMPLING_PROBABILITY)


class PrivacyConfig(Section, frozen=True):
    """The privacy of a client. With neither `noise_multiplier` nor `epsilon` the run is NOT PRIVATE, and says so."""

    noise_multiplier: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=NOISE_MULTIPLIERS[1],
                description="Total noise multiplier z: a round costs as much privacy as one release of the sum of "
                "clipped updates with Gaussian noise of standard deviation z times the clip norm. With `metrics_share` "
                "= 0 and a fixed clip norm, that is the noise on the sum; otherwise the noise on the sum is larger.",
            ),
        ]
        | None
    ) = None
    epsilon: (
        Annotated[
            float, positive("Budget ε, instead of `noise_multiplier`: the least noise that keeps it is computed.")
        ]
        | None
    ) = None
    delta: Annotated[float, open_share(f"δ of the guarantee. Default: N^{DELTA_EXPONENT} for N clients.")] | None = None
    clip_norm: (
        Annotated[
            float,
            positive("Maximum L2 norm of a client's update; with `clip_quantile`, that of the first round."),
        ]
        | None
    ) = None
    clip_quantile: (
        Annotated[
            float,
            open_share("Quantile of the update norms that the clip norm follows privately. Default: it is fixed."),
        ]
        | None
    ) = None
    clip_learning_rate: (
        Annotated[
            float,
            positive(
                f"With `clip_quantile`: step size of the clip norm's logarithm. Default: {AdaptiveClip.learning_rate}."
            ),
        ]
        | None
    ) = None
    clip_count_stddev: (
        Annotated[
            float,
            positive(
                "With `clip_quantile`: standard deviation of the noise on the number of clients whose update norm is "
                "at most the clip norm. Default: a twentieth of the expected number of clients in a round."
            ),
        ]
        | None
    ) = None
    metrics_share: (
        Annotated[
            float,
            share(
                "Share of a round's privacy budget, measured as 1 / `noise_multiplier`², that is spent on releasing "
                "the round's [training loss, accuracy and number of clients](privacy.md#the-metrics-of-a-round) with "
                "noise; 0 releases none of them. "
                f"Default: {PrivateMetrics.share} in a private run."
            ),
        ]
        | None
    ) = None
    loss_bound: (
        Annotated[
            float,
            Meta(
                gt=LOSS_BOUNDS[0],
                lt=LOSS_BOUNDS[1],
                description="Maximum of a client's mean loss in those metrics, in nats per token; public. "
                f"Default: {PrivateMetrics.loss_bound:g} for each of `model.prediction_heads`.",
            ),
        ]
        | None
    ) = None
    noise: Annotated[
        Literal["floating-point", "exact"],
        text(
            "`exact` takes [integer sums and rounded exact Gaussian noise](privacy.md#noise), hardened against "
            "floating-point attacks; clients are then trained one after another (`run.clients_at_once` is 1)."
        ),
    ] = "floating-point"

    mechanism: Annotated[
        Literal["gaussian", "tree", "banded", "blt"],
        text(
            "`gaussian` adds independent noise in each round. The others add [correlated noise](systems/dp-ftrl.md) "
            "(DP-FTRL), whose ε follows from limits on participation: they need the sampler `cyclic`, `cyclic-poisson` "
            "or `check-in` and a fixed clip norm."
        ),
    ] = "gaussian"
    restart_every: (
        Annotated[int, at_least(1, "`tree`: rounds after which a new tree begins. Default: one tree.")] | None
    ) = None
    bands: (
        Annotated[
            int,
            at_least(
                1, f"`banded`: number of bands; the noise history has one vector fewer. Default: {BANDS}.", MAX_BANDS
            ),
        ]
        | None
    ) = None
    buffers: (
        Annotated[
            int,
            at_least(
                1, f"`blt`: maximum number of buffers, vectors of noise history. Default: {BUFFERS}.", MAX_BUFFERS
            ),
        ]
        | None
    ) = None
    optimize_for: (
        Annotated[
            Literal["prefix-sums", "optimizer"],
            text(
                "`banded`, `blt`: what the noise is made smallest in. `prefix-sums`: the sums of all rounds so far, "
                "with the server's momentum and cooldown as post-processing. `optimizer`: the weights, with momentum "
                'and cooldown inside the objective. Default: "prefix-sums".'
            ),
        ]
        | None
    ) = None
    horizon: (
        Annotated[
            int,
            at_least(
                1,
                "`banded`, `blt`: number of rounds that the noise is made smallest for. The guarantee is always that "
                f"of `run.rounds`. Default: `run.rounds`, at most {MAX_HORIZON}.",
                MAX_HORIZON,
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        config_checks.check_privacy(self)

    @property
    def is_private(self) -> bool:
        """Returns whether the run adds noise."""
        return self.epsilon is not None or (self.noise_multiplier or 0) > 0

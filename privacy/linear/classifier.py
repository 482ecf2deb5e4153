"""`DPLinearClassifier`: differentially private softmax regression with scikit-learn's interface."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee, hardness
from privacy.arrays import of_length_one, shortened
from privacy.linear.features import FeatureMap, centre_of_ball, check_bound, fit_feature_map
from privacy.linear.linear_dpsgd import LinearDPSGD, softmax
from privacy.noise import exact
from privacy.noise.randomness import Randomness, SecureRandomness, SeededRandomness
from privacy.noise.training import secure_generator

if TYPE_CHECKING:
    from privacy.budget import Releases


class DPLinearClassifier(ClassifierMixin, BaseEstimator):
    """Softmax regression by DP-SGD, after private preprocessing of the features (DPSGD-F, arXiv:2307.11106).

    One account covers all: the number of records, the centre and radius of the features, and the training. Which
    classes there are is taken as public: give `classes`, or it is read off the labels, with a warning.

    Attributes (those with an underscore are there after `fit`):
      epsilon: ε of everything that `fit` releases, above 0; unit: one record (a row of X with its y), added or removed.
      delta: δ, in (0, 1).
      preprocess: centre the features and scale them by a private radius.
      bound: on the length of a feature vector, public: the version of the theory, right however far from the origin the
        features lie. None: the practical version; each vector is scaled to length 1, before and after centring.
      share: of ε for the preprocessing, in (0, 1).
      steps, rate, clip, learning_rate, momentum: of `privacy.linear.LinearDPSGD`, on features of length at most 1.
      classes: all possible labels; None: those in y.
      random_state: None for secure randomness; a whole number to repeat a run in tests, which protects nobody.
      classes_: the labels, in the order of the columns of `predict_proba`.
      weights_: [features + 1, classes], on `feature_map_(X)`; with `bound` None, of X over its rows' lengths.
      guarantee_: `privacy.accounting.guarantee.Guarantee`: ε with all that belongs to it.
      feature_map_: `privacy.linear.features.FeatureMap`.
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        preprocess: bool = True,
        bound: float | None = None,
        share: float = 0.1,
        steps: int = 100,
        sampling_probability: float = 0.1,
        clip_norm: float = 1.0,
        learning_rate: float = 10.0,
        momentum: float = 0.9,
        classes: Any = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.preprocess = preprocess
        self.bound = bound
        self.share = share
        self.steps = steps
        self.sampling_probability = sampling_probability
        self.clip_norm = clip_norm
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.classes = classes
        self.random_state = random_state

    def fit(self, X: Any, y: Any, ledger: Releases | None = None) -> DPLinearClassifier:
        """Trains on features X [n, d], finite, and labels y [n]. Each call costs ε again.

        Args:
          X: features.
          y: labels.
          ledger: of a `privacy.budget.Budget`; what `fit` releases is written there before any noise is drawn.

        Raises:
          ValueError: a parameter or the data are not as they must be, or the budget does not allow it, in one line.
        """
        epsilon = checks.positive("epsilon", self.epsilon, "give the budget of this model")
        delta = checks.between("delta", self.delta, 0, 1, "1e-5 is usual, below 1 / records")
        share = checks.between("share", self.share, 0, 1, "0.1 is usual")
        # Refuses wrong settings; the noise follows from ε, and the batch is known after the preprocessing.
        training = LinearDPSGD(
            self.steps, self.sampling_probability, 1.0, self.clip_norm, 1.0, self.learning_rate, self.momentum
        )
        if not isinstance(self.preprocess, (bool, np.bool_)):
            raise ValueError(f"preprocess is {self.preprocess!r}: give True or False")
        if self.bound is not None:
            check_bound(self.bound)
        X, y = _validated(self, X, y)
        check_classification_targets(y)
        classes, labels = self._labels(y)
        source: Randomness = SecureRandomness()
        generator = secure_generator()
        if self.random_state is not None:
            source = SeededRandomness(self.random_state)
            generator = np.random.default_rng(self.random_state)

        before, z = _noise_multipliers(epsilon, delta, share, training.steps, training.sampling_probability)
        guarantee = Guarantee(
            f"linear classifier by {'DPSGD-F' if self.preprocess else 'DP-SGD'}, classes public",
            (costs.Gaussian(before), costs.Gaussian(z, training.steps, training.sampling_probability)),
            "add-or-remove-one",
            delta,
            f"preprocessing: {hardness(source)}; training: floating-point Gaussian, not hardened",
            f"training: {training.steps} Poisson samples with probability {training.sampling_probability:g}; "
            "otherwise everybody, once",
        )
        if ledger is not None:
            ledger.record(guarantee)

        prepared = self._scaled(X)
        if not self.preprocess:
            bound = 1.0 if self.bound is None else self.bound
            feature_map = _count_only(len(prepared), X.shape[1], bound, before, source)
        elif self.bound is None:
            feature_map = centre_of_ball(prepared, 1.0, before, source)
        else:
            feature_map = fit_feature_map(prepared, self.bound, before, source)
        batch = max(training.sampling_probability * feature_map.records, 1.0)
        training = dataclasses.replace(training, noise_multiplier=z, expected_batch=batch)
        weights = training.train(feature_map(prepared, clip=True), labels, len(classes), generator)
        # All at once and last: a `fit` that was refused leaves an earlier one's weights beside their own guarantee.
        self.classes_, self.feature_map_, self.weights_, self.guarantee_ = classes, feature_map, weights, guarantee
        return self

    def decision_function(self, X: Any) -> npt.NDArray[Any]:
        """Logits [n, classes] of features [n, d]; with two classes [n], of the second."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        """Probabilities [n, classes] of features [n, d]."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likeliest label of each row of X [n, d]."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X: Any) -> npt.NDArray[Any]:
        check_is_fitted(self)
        X = _validated(self, X, reset=False)
        return self.feature_map_(self._scaled(X)) @ self.weights_

    def _scaled(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return of_length_one(X) if self.bound is None else shortened(X, self.bound)

    def _labels(self, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The classes, sorted, and each label's position among them."""
        if self.classes is None:
            warnings.warn("which classes there are was read off y and is taken as public: give classes", stacklevel=3)
            classes = np.unique(y)
        else:
            try:
                classes = np.unique(np.asarray(list(self.classes)))
            except TypeError:  # no list, or labels that cannot be sorted
                raise ValueError(f"classes is {self.classes!r}: give a list of all labels, of one type") from None
        if len(classes) < 2:
            named = "classes" if self.classes is not None else "y"
            raise ValueError(f"{named} holds one class only, {classes.tolist()}: at least 2 classes are needed")
        places = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        if (classes[places] != y).any():
            raise ValueError(f"a label is none of classes {classes.tolist()}: name it there, or leave its row out")
        return classes, places


@functools.lru_cache(maxsize=64)  # a search over other settings asks again and again
def _noise_multipliers(epsilon: float, delta: float, share: float, steps: int, rate: float) -> tuple[float, float]:
    """Of the preprocessing, which alone would cost its share of ε, and of the training."""
    before = costs.calibrate(lambda z: [costs.Gaussian(z)], share * epsilon, delta)
    preprocessing = costs.Gaussian(before)
    return before, costs.calibrate(lambda z: [preprocessing, costs.Gaussian(z, steps, rate)], epsilon, delta)


def _validated(model: DPLinearClassifier, *data: Any, **options: Any) -> Any:
    """Scikit-learn's checks, their errors in one line."""
    try:
        return validate_data(model, *data, dtype=(np.float64, np.float32), **options)
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _count_only(count: int, size: int, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """No preprocessing: the features over their bound, and a private count."""
    steps = 2**20
    stddev = math.ceil(steps * noise_multiplier)
    noised = (count * steps + int(exact.gaussian(source, stddev, 1)[0])) / steps
    return FeatureMap(np.zeros(size), bound, max(noised, 1.0), (costs.Gaussian(stddev / steps),))

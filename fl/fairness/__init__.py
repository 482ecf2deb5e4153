"""Tests whether a model treats many intersecting groups alike, plans how many rows the test needs, and reports it.

    frame = FairnessFrame(metrics="zero_one_loss", y_true=y, y_pred=p, sensitive_features=people, alpha=0.9)
    frame.test.rejects, frame.test.gap_high

It needs NumPy and SciPy only, and none of `fl` besides. Reference: Paes, Suresh, Beutel, Calmon and Beirami 2023,
Multi-Group Fairness Evaluation via Conditional Value-at-Risk Testing, https://arxiv.org/abs/2312.03867.
"""

from fl.fairness.client_sums import NoisySums
from fl.fairness.conclusion import FairnessTest
from fl.fairness.gaps import cvar, cvar_gap
from fl.fairness.groups import GroupSums, from_counts, from_rows
from fl.fairness.hypothesis_test import attribute_specific_test, holm, weighted_test
from fl.fairness.max_gap import MaxGapTest, max_gap_test
from fl.fairness.metric_frame import FairnessFrame, StratumTest
from fl.fairness.noisy_statistic import noisy_test
from fl.fairness.planner import plan_attribute_specific, plan_max_gap, plan_weighted, sampling_probabilities

__all__ = [
    "FairnessFrame",
    "FairnessTest",
    "GroupSums",
    "MaxGapTest",
    "NoisySums",
    "StratumTest",
    "attribute_specific_test",
    "cvar",
    "cvar_gap",
    "from_counts",
    "from_rows",
    "holm",
    "max_gap_test",
    "noisy_test",
    "plan_attribute_specific",
    "plan_max_gap",
    "plan_weighted",
    "sampling_probabilities",
    "weighted_test",
]

"""Tests the audit of a step on a cancelling record: it does not refute the step, and refutes a fixed slack."""

import pytest

from privacy.audit.bounds import from_scores
from privacy.dpsgd import clip_bounds
from privacy.dpsgd.audit_case import cancelling_record
from tests.privacy.dpsgd.test_cancelling_records import fixed_slack


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [False, True])
def test_audit_refutes_only_a_fixed_slack(faulty, monkeypatch):
    if faulty:
        monkeypatch.setattr(clip_bounds, "compute_bounds", fixed_slack)
    case = cancelling_record(1.0, 0.05)
    bound = from_scores(*case.scores(2500 if faulty else 500), case.delta, 0.9999)
    assert bound.refutes(1.0) is faulty


def test_cancelling_record_refuses_a_delta_out_of_range():
    with pytest.raises(ValueError, match="delta"):
        cancelling_record(1.0, 1.0)

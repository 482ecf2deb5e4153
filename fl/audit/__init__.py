"""Audits federated training with canaries: a single aggregation (`aggregation`) and a whole run (`training_run`)."""

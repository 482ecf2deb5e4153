"""Audits of federated training by canaries: of one aggregation (`aggregation`) and of a whole run (`training_run`)."""

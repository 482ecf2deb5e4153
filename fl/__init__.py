"""Federated training: clients and their data, cohorts, local SGD, aggregation, the round loop, TFF runtime."""

import privacy.extras  # noqa: F401

"""Federated training: clients and their data, cohorts, local SGD, aggregation, the round loop, TFF runtime."""

import models.extras  # noqa: F401

"""Runnable studies and the command line."""

import models.extras  # noqa: F401

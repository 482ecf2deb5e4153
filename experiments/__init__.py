"""Runnable studies and the command line."""

import privacy.extras  # noqa: F401

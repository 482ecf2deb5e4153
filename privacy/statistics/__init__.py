"""Releases private statistics of records: means, quantiles, and measurements of OpenDP."""

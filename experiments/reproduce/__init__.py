"""Holds the studies of `fedspeak reproduce`; each writes metrics.json, a table and a plot into a folder."""

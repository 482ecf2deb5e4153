"""Holds one module per framework; each is run in its own process: `python -m experiments.bench.peers.NAME WORKLOAD …`.

A module that runs in an environment of its own imports the standard library, NumPy, its framework and other modules of
this package only, since its environment holds nothing else.
"""

"""One module a framework, each run as a process of its own: `python -m experiments.bench.peers.NAME WORKLOAD …`.

They need Python's standard library, NumPy and their framework, nothing else of this kit.
"""

"""Holds the command line `fedspeak`, the benchmarks and the studies that can be reproduced."""

"""Holds the benchmarks of fedspeak alone and beside other frameworks.

This module imports nothing, since the other frameworks' processes import it too and have neither TensorFlow nor TFF.
"""

"""Holds the commands of `fedspeak`, one module per group; `experiments.cli` imports a module when it is called."""

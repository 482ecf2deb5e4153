"""Runs the command line: `python -m experiments …` does what `fedspeak …` does."""

from experiments.cli import main

main()

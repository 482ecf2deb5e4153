"""`python -m experiments …` is `fedspeak …`."""

from experiments.cli import main

main()

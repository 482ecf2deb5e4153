"""The commands of `fedspeak`, one module a group; `experiments.cli` lists them and imports each when it is called."""

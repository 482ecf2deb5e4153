"""Side-by-side runs of this kit and of other frameworks. Nothing heavy here: the peers' processes import it too."""

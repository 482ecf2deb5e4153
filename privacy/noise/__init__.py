"""Noise: exact on the integers (`exact`, `rounded`), fast for training (`training`); `randomness` gives the bits."""

"""Draws noise: exact noise on the integers (`exact`, `rounded`) and fast floating-point noise (`training`).

`randomness` supplies the random bits of `exact`.
"""

"""Engines: how a round of local training is carried out on TFF."""

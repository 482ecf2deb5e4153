"""Holds the engines, which carry out the rounds of federated averaging on TFF."""

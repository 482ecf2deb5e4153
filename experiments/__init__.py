"""Runnable studies and the command line."""

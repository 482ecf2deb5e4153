"""Holds decoder-only transformers: layers, key-value cache and the language model."""

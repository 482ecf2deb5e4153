"""Imports pretrained language models of the Llama family, from GGUF files and Hugging Face folders.

`models.pretrained.checkpoint.load` reads a checkpoint. It needs the extra `pretrained`.
"""

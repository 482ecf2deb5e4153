"""Draws tokens from logits: keyed random numbers, logits processing, integer sampling, verifiers, the loop.

`choices` and the modules whose names begin with `numpy_` need NumPy alone and run on devices. The other modules compute
the same bits with TensorFlow ops. Importing the package loads neither NumPy nor TensorFlow.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Acceptance": "models.decoding.acceptance",
    "Choices": "models.decoding.choices",
    "Costs": "models.decoding.choices",
    "Drafter": "models.decoding.drafters",
    "GREEDY_BLOCK": "models.decoding.greedy_block",
    "Generator": "models.decoding.generator",
    "History": "models.decoding.numpy_processing",
    "KatzDrafter": "models.decoding.katz_drafter",
    "KatzTables": "models.decoding.katz_tables",
    "LookupDrafter": "models.decoding.lookup_drafter",
    "ModelDrafter": "models.decoding.drafters",
    "NGramDrafter": "models.decoding.ngram_drafter",
    "Processing": "models.decoding.choices",
    "SharedVocabularyDrafter": "models.decoding.shared_vocabulary",
    "SpecTr": "models.decoding.spectr",
    "Speculation": "models.decoding.speculation",
    "Stream": "models.decoding.numpy_ops",
    "Traversal": "models.decoding.traversal",
    "TreeSpeculation": "models.decoding.tree_speculation",
    "Verifier": "models.decoding.verifier",
    "block_histories": "models.decoding.history",
    "block_rule": "models.decoding.verification",
    "check_lossless": "models.decoding.lossless",
    "extend_history": "models.decoding.history",
    "find_best_paths": "models.decoding.p_best",
    "measure_repetition": "models.decoding.draft_statistics",
    "optimal_acceptance": "models.decoding.transport",
    "oracle_lengths": "models.decoding.draft_statistics",
    "process": "models.decoding.processing",
    "quantized": "models.decoding.rounded_weights",
    "random_words": "models.decoding.prng",
    "sample": "models.decoding.sampling",
    "successive_blocks": "models.decoding.draft_statistics",
    "token_rule": "models.decoding.verification",
    "uniforms": "models.decoding.prng",
    "verify": "models.decoding.verification",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models.decoding' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"models.decoding.{name} needs {error.name}, which is not installed: pip install 'fedspeak[models]'",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return __all__

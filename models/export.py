"""Exports a language model, and with it a drafter, to one TFLite file that draws token ids by itself.

The app itself converts text to ids and back, with the vocabulary in the file's zip (`models.tflite_file`). The file
needs builtin ops only. Its signatures have a batch size of 1. L, N and G are the arguments `max_prompt`,
`max_new_tokens` and `draft_length` of `export`, and V is the vocabulary size. Integers are int32, all else is float32
unless it says otherwise.

* `prefill` reads a prompt, or the next part of one: tokens `[1, L]` (the first token of a prompt is the begin token),
  length `[]` (number of real tokens, 1 to L), state_0, state_1, ... (zeros before the first part)
  -> logits `[1, V]`, state_0, state_1, ...
* `decode` reads one more token: token `[1]`, state_0, state_1, ... -> logits `[1, V]`, state_0, state_1, ...
* `generate` reads a prompt and draws tokens one by one: tokens `[1, L]`, length `[]`, the choices, max_new `[]`
  (maximum number of tokens; above N it counts as N), stop `[]` (id of the token to end after; -1 for none)
  -> tokens `[1, N]`, lengths `[1]`, log_probs and unprocessed_log_probs `[1, N]` (of each token, under the target's
  distribution after and before processing), is_ended `[1]` (bool: with the stop token), is_finite `[1]` (bool; False:
  the text ends early because the logits are not finite or leave no token), calls and decided `[1]`, and the random
  words word_0, word_1 `[1, N]`. The choices are seed `[2]`, request `[]`, the fields of
  `models.decoding.choices.Processing` `[]`, and bias `[V]`.
* `generate_best_of_n`, if asked for, draws n texts after one prompt at once: inputs and outputs are those of
  `generate`, without random words and with n rows. Row i draws what `generate` draws for request number `request` + i.
* `generate_block` and the like, for each other decoding, draft with the drafter: inputs and outputs are those of
  `generate`, without random words. With automatic draft lengths the choices end with nothing_cost, verify_cost and
  draft_cost `[]` (`models.decoding.choices.Costs`). Outputs more are drafted, reached and accepted `[1, G]`
  (`models.decoding.loop.Counts`).
* `read_block` reads a prompt, or a part of one, for `block_block`: tokens, length, begins_here `[]` (1 in the first
  part, where the given states are ignored, else 0), ends_here `[]` (1 in the last part, else 0), state_0, state_1, ...
  -> state_0, state_1, ...
* `block_block` adds one block: the choices, state_0, state_1, ... -> the fields of `models.decoding.speculation.Block`,
  state_0, state_1, ... With automatic draft lengths there is one more output, drafts `[1]`: False once no draft pays.
  From then on, `plain_block_block`, with the same inputs and outputs, does the same in the time of plain decoding.

The state of a transformer has room for L + N tokens and one block. Logits are NaN if tokens are read beyond it; TFLite
has no errors.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models import tflite_file
from models.decoding.choices import DECODINGS, LONGEST_TEXT
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter
from models.decoding.heads_drafter import HeadsDrafter
from models.heads import without_heads
from models.language_model import LanguageModel, Weights
from models.signatures import Signatures
from models.tflite_file import PRECISIONS
from models.transformer.cache import writing_in_place
from models.vocabularies import AnyVocabulary


def export(
    model: LanguageModel,
    weights: Weights,
    vocabulary: AnyVocabulary,
    path: str | os.PathLike[str],
    precision: str = "float32",
    max_prompt: int = 64,
    max_new_tokens: int = 128,
    decodings: Sequence[str] = ("autoregressive",),
    drafter: Drafter | None = None,
    draft_length: int = 4,
    automatic: bool = False,
    num_drafts: int = DraftOptions.num_drafts,
    tree: Sequence[int] = DraftOptions.tree,
    paths: int = DraftOptions.paths,
    best_of: int = 1,
) -> None:
    """Writes a model, its weights, its vocabulary and perhaps a drafter as one TFLite file.

    Of a model with prediction heads, the base model is written, or all of it if its heads draft.

    The file appears at `path` only when it is complete. If writing fails, an existing file is left unchanged.

    Args:
      model: the language model.
      weights: the model's weights by name, finite and without a client axis.
      vocabulary: the vocabulary that the model was trained with.
      path: the file to write, in a folder that exists.
      precision: weight precision of the file: "float32", "float16" (half the bytes per weight; computes in float32) or
        "int8" (a quarter of the bytes per weight; dynamic-range quantisation, which quantises activations at run time).
      max_prompt: maximum number of tokens that `prefill` and `generate` read, begin token included, 1 to 2**16.
      max_new_tokens: maximum number of tokens that `generate` draws, 1 to 2**16.
      decodings: names from `models.decoding.choices.DECODINGS`, at least one, each once. The file has signatures for
        each of them. A runtime may hold a copy of the target's weights for each signature.
      drafter: what drafts in all decodings but "autoregressive", with the model's vocabulary; a `HeadsDrafter` for
        decoding "blockwise".
      draft_length: number of tokens G that the drafter proposes per block, >= 1; not for decoding "tree".
      automatic: whether the runtime chooses draft lengths from 0 to G by the measured costs.
      num_drafts: number of drafts of G tokens of decoding "spectr", >= 1.
      tree: number of children by depth of the drafted tree of decoding "tree".
      paths: number of best paths that a `LatticeDrafter` drafts for decoding "blockwise", >= 1.
      best_of: number of texts that `generate_best_of_n` draws after one prompt; 1 leaves it out.

    Raises:
      ValueError: the precision or a decoding is unknown, a decoding lacks its drafter, a number is outside its range,
        the vocabulary's size is not the model's, a weight is missing, unknown, of another shape or not finite, the
        tokens do not fit in the model's context, or a model needs ops that are not TFLite's own.
      OSError: `path` cannot be written.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    lengths = {
        "max_prompt": max_prompt,
        "max_new_tokens": max_new_tokens,
        "draft_length": draft_length,
        "best_of": best_of,
    }
    for name, value in lengths.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= LONGEST_TEXT:
            raise ValueError(f"{name}: {value!r} is not an integer from 1 to {LONGEST_TEXT}")
    if model.vocabulary_size != vocabulary.size:
        raise ValueError(
            f"vocabulary has {vocabulary.size} tokens, but the model was built for {model.vocabulary_size}: "
            "give the vocabulary that the model was trained with"
        )
    _require_weights(model, weights)
    if not isinstance(drafter, HeadsDrafter):
        model, weights = without_heads(model, weights)
    _require_decodings(decodings, drafter)
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: create it first")
    max_prompt, max_new_tokens = int(max_prompt), int(max_new_tokens)
    options = DraftOptions(0 if drafter is None else draft_length, automatic, num_drafts, tree, paths)
    draft_room = (
        max(options.count(name) for name in decodings if name != "autoregressive") if drafter is not None else 0
    )
    context = max_prompt + max_new_tokens + draft_room
    if model.context is not None and context > model.context:
        drafted = f", max_new_tokens = {max_new_tokens} and {draft_room} drafted tokens"
        named = drafted if draft_room else f" and max_new_tokens = {max_new_tokens}"
        raise ValueError(
            f"max_prompt = {max_prompt}{named} do not fit together in the model's context of {model.context} tokens: "
            "lower them"
        )
    model = model.fit(context)
    is_int8 = precision == "int8"
    weights = model.equalized(weights) if is_int8 else weights
    held: list[tf.Variable] = []

    def hold(array: Any) -> tf.Variable:
        held.append(tf.Variable(array, trainable=False))
        return held[-1]

    if drafter is not None:
        drafter = drafter.deploy(context, hold, is_int8)
    limits = max_prompt, max_new_tokens
    with writing_in_place():
        signatures = Signatures(model, weights, *limits, decodings, drafter, held, options, int(best_of))
    flatbuffer = convert(signatures, signatures.functions, precision)
    foreign = sorted(name for name in ops(flatbuffer) if name.startswith(("CUSTOM", "Flex")))
    if foreign:
        raise ValueError(
            f"the model needs ops that TFLite has not built in ({', '.join(foreign)}): write its prefill, extend and "
            "rewind without them"
        )
    facts = tflite_file.Facts(
        precision=precision,
        config=model.config(),
        max_prompt=max_prompt,
        max_new_tokens=max_new_tokens,
        decodings=list(decodings),
        draft_length=options.draft_length,
        draft_room=draft_room,
        automatic=automatic,
        num_drafts=options.num_drafts,
        tree=list(options.tree),
        best_of=int(best_of),
        state_shapes=[state.shape.as_list() for state in tf.nest.flatten(model.initial_state(1))],
        flatbuffer_bytes=len(flatbuffer),
        flatbuffer_sha256=tflite_file.checksum(flatbuffer),
    )
    tflite_file.write(path, flatbuffer, vocabulary, facts)


def _require_decodings(decodings: Sequence[str], drafter: Drafter | None) -> None:
    """Raises a ValueError if a decoding is unknown, comes twice, or does not go with the drafter."""
    if not decodings or len(set(decodings)) < len(decodings) or not set(decodings) <= set(DECODINGS):
        raise ValueError(f"decodings: {list(decodings)!r} must be some of {', '.join(DECODINGS)}, each once")
    drafting = [name for name in decodings if name != "autoregressive"]
    if drafting and drafter is None:
        raise ValueError(f"decoding {drafting[0]!r} needs a drafter: give one, or choose 'autoregressive'")
    if drafter is not None and not drafting:
        raise ValueError("decoding 'autoregressive' takes no drafter: choose another decoding, or drop the drafter")


def _require_weights(model: LanguageModel, weights: Weights) -> None:
    """Raises a ValueError that names the first weight that is missing, unknown, of another shape or not finite."""
    shapes = model.shapes()
    for name in sorted(shapes.keys() ^ weights.keys()):
        problem = "is missing" if name in shapes else "is not one of the model's"
        raise ValueError(f"weight {name!r} {problem}: give the weights that were trained with this model")
    for name, shape in shapes.items():
        if np.shape(weights[name]) != shape:
            raise ValueError(
                f"weight {name!r} has shape {list(np.shape(weights[name]))}, but the model's has {list(shape)}: "
                "give the weights that were trained with this model, without a client axis"
            )
        if not np.isfinite(weights[name]).all():
            raise ValueError(
                f"weight {name!r} is not finite (NaN or infinity): the model is damaged or diverged; restore it, or "
                "train again with a smaller learning rate"
            )


def convert(module: tf.Module, functions: Mapping[str, Any], precision: str) -> bytes:
    """Converts signatures to a TFLite flatbuffer.

    Args:
      module: what holds the variables that the functions read.
      functions: the signatures by name, concrete functions.
      precision: precision of the weights, one of `PRECISIONS`.

    Raises:
      ValueError: a function needs ops that TFLite has not built in.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        # Without this setting, versions of TensorFlow after 2.14 quantise the output embedding row by row, and store a
        # second copy of it for the input lookup. TensorFlow 2.14 has no such mode, and ignores the setting.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        try:
            return bytes(converter.convert())
        except Exception as error:
            if type(error).__name__ != "ConverterError":  # the class has no public name
                raise
            raise ValueError(
                "the model or the drafter needs ops that TFLite has not built in: write them without these "
                f"({str(error).splitlines()[0]})"
            ) from None


def ops(flatbuffer: bytes) -> Counter[str]:
    """Counts each op in all subgraphs of a flatbuffer; the names of ops that are not builtin begin with CUSTOM."""
    schema = _load_schema()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    counts: Counter[str] = Counter()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            counts[f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name] += 1
    return counts


def _load_schema() -> Any:
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        return import_module("tensorflow.lite.python.schema_py_generated")

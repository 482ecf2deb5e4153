"""Sets and describes the kernels that TensorFlow computes with: oneDNN, unless the environment says otherwise.

By itself TensorFlow uses oneDNN only on processors with AVX-512. But on processors with AVX2 oneDNN is faster for
recurrent and convolutional models, too (docs/performance.md). Results of different kernels differ in their last bits,
so a result is bit-equal only on the same kernels.
"""

import os
import platform
import re
from pathlib import Path

_SWITCH = "TF_ENABLE_ONEDNN_OPTS"
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Flags in /proc/cpuinfo and the names of the instruction sets, the widest first.
_SETS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse4_1": "SSE4.1"}


def prefer_onednn() -> None:
    """Switches oneDNN on for this process and those that it starts, unless TF_ENABLE_ONEDNN_OPTS is set.

    In this process it has an effect only before TensorFlow is imported.
    """
    os.environ.setdefault(_SWITCH, "1")


def describe_kernels() -> str:
    """Returns the setting and the instruction set in one line, as in "oneDNN on, AVX-512 limited to AVX2"."""
    switch = os.environ.get(_SWITCH)
    state = "by TensorFlow's default" if switch is None else "off" if switch.lower() in ("0", "false") else "on"
    limit = next((os.environ[name] for name in _LIMITS if name in os.environ), None)
    return f"oneDNN {state}, {_detect_instruction_set()}{'' if limit is None else f' limited to {limit}'}"


def _detect_instruction_set() -> str:
    """Returns the widest instruction set of this processor, or the machine's name if it has none of them."""
    try:
        match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    flags = set() if match is None else set(match[1].split())
    return next((name for flag, name in _SETS.items() if flag in flags), platform.machine())

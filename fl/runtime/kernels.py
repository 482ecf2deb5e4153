"""Which kernels TensorFlow computes with: oneDNN on every processor, unless the user has set it otherwise.

TensorFlow switches oneDNN on by itself only where it finds AVX-512. On processors with AVX2 alone its kernels for
recurrent and convolutional models are faster, too (docs/performance.md). Kernels differ in their last bits, so a result
is bit-equal only on the same kernels.
"""

import os
import platform
import re
from pathlib import Path

_SWITCH = "TF_ENABLE_ONEDNN_OPTS"
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Flag in /proc/cpuinfo → its name, the widest first.
_SETS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse4_1": "SSE4.1"}


def prefer_onednn() -> None:
    """Switches oneDNN on for this process and those that it starts, unless TF_ENABLE_ONEDNN_OPTS is set.

    It has an effect on this process only before TensorFlow is imported.
    """
    os.environ.setdefault(_SWITCH, "1")


def describe_kernels() -> str:
    """Returns the setting and the instruction set in one line, as in "oneDNN on, AVX-512 limited to AVX2"."""
    switch = os.environ.get(_SWITCH)
    state = "by TensorFlow's default" if switch is None else "off" if switch.lower() in ("0", "false") else "on"
    limit = next((os.environ[name] for name in _LIMITS if name in os.environ), None)
    return f"oneDNN {state}, {_instruction_set()}{'' if limit is None else f' limited to {limit}'}"


def _instruction_set() -> str:
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    flags = set() if found is None else set(found[1].split())
    return next((name for flag, name in _SETS.items() if flag in flags), platform.machine())

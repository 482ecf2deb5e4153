"""Sets and describes the kernels that TensorFlow computes with: oneDNN, unless the environment says otherwise.

By itself TensorFlow uses oneDNN only on processors with AVX-512. But on processors with AVX2 oneDNN is faster for
recurrent and convolutional models, too (docs/performance.md). Results of different kernels differ in their last bits,
so a result is bit-equal only on the same kernels.
"""

import functools
import logging
import os
import platform
import re
from pathlib import Path

_SWITCH = "TF_ENABLE_ONEDNN_OPTS"
# The values that TensorFlow understands, in upper or lower case. It ignores every other value and takes its default.
_STATES = {"0": "off", "false": "off", "1": "on", "true": "on"}
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Flags in /proc/cpuinfo and the names of the instruction sets, the widest first.
_SETS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse4_1": "SSE4.1"}
_CPUINFO = Path("/proc/cpuinfo")

log = logging.getLogger(__name__)


def prefer_onednn() -> None:
    """Switches oneDNN on for this process and those that it starts, unless TF_ENABLE_ONEDNN_OPTS is set.

    In this process it has an effect only before TensorFlow is imported. A value that TensorFlow does not know stays as
    it is; the first call logs a warning that names it.
    """
    value = os.environ.setdefault(_SWITCH, "1")
    if value.lower() not in _STATES:
        _warn_of_unknown(value)


@functools.cache
def _warn_of_unknown(value: str) -> None:
    """Logs the warning once for each value, however many workers are started."""
    log.warning(
        "%s = %r is none of 0, 1, false and true: TensorFlow ignores it and uses oneDNN by its own default; set 1 or 0",
        _SWITCH,
        value,
    )


def describe_kernels() -> str:
    """Returns the setting and the instruction set in one line, as in "oneDNN on, AVX-512 limited to AVX2"."""
    state = _STATES.get(os.environ.get(_SWITCH, "").lower(), "by TensorFlow's default")
    limit = next((os.environ[name] for name in _LIMITS if name in os.environ), None)
    return f"oneDNN {state}, {_detect_instruction_set()}{'' if limit is None else f' limited to {limit}'}"


def _detect_instruction_set() -> str:
    """Returns the widest instruction set of this processor, or the machine's name if it has none of them."""
    try:
        match = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        match = None
    flags = set() if match is None else set(match[1].split())
    return next((name for flag, name in _SETS.items() if flag in flags), platform.machine())

import os
import platform
from pathlib import Path

import pytest

from experiments.cli import main
from fl.runtime import kernels
from fl.runtime import worker as workers
from fl.runtime.owned_process import OwnedProcess

SWITCH = "TF_ENABLE_ONEDNN_OPTS"


@pytest.fixture
def unset(monkeypatch):
    """Unsets TF_ENABLE_ONEDNN_OPTS, and restores it afterwards whatever the test has set."""
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.delenv(SWITCH)


@pytest.fixture(autouse=True)
def no_value_was_warned_of():
    kernels._warn_of_unknown.cache_clear()


def test_prefer_onednn_sets_what_is_unset(unset):
    assert kernels.describe_kernels().startswith("oneDNN by TensorFlow's default, ")
    kernels.prefer_onednn()
    assert kernels.describe_kernels().startswith("oneDNN on, ")


@pytest.mark.parametrize(
    ("value", "state"),
    [
        ("0", "off"),
        ("false", "off"),
        ("False", "off"),
        ("FALSE", "off"),
        ("1", "on"),
        ("true", "on"),
        ("True", "on"),
        ("off", "by TensorFlow's default"),
        ("on", "by TensorFlow's default"),
        ("2", "by TensorFlow's default"),
        ("no", "by TensorFlow's default"),
        (" 0", "by TensorFlow's default"),
        ("", "by TensorFlow's default"),
    ],
)
def test_environment_keeps_its_value_which_is_read_as_tensorflow_reads_it(value, state, monkeypatch, caplog):
    """TensorFlow's ReadBoolFromEnvVar knows 0, false, 1 and true in any case, and takes the default for all else."""
    monkeypatch.setenv(SWITCH, value)
    for _ in range(2):
        kernels.prefer_onednn()
    assert os.environ[SWITCH] == value
    assert kernels.describe_kernels().startswith(f"oneDNN {state}, ")
    warnings = [record.getMessage() for record in caplog.records]
    if state == "by TensorFlow's default":
        assert len(warnings) == 1 and warnings[0].startswith(f"{SWITCH} = {value!r} is none of 0, 1, false and true: ")
    else:
        assert not warnings


def test_describe_kernels_names_limited_instruction_set(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert "limited" not in kernels.describe_kernels()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert kernels.describe_kernels().endswith(" limited to AVX2")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu sse sse2 sse4_1 avx avx2 avx512f amx_tile", "AMX"),
        ("avx512f avx2 avx sse4_1 fpu", "AVX-512"),
        ("fpu sse4_1 avx avx2 avx512_like", "AVX2"),
        ("fpu sse4_1 avx", "AVX"),
        ("fpu sse4_1", "SSE4.1"),
        ("fpu", platform.machine()),
    ],
)
def test_widest_instruction_set_of_processor_is_named(flags, name, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: made up\nflags\t\t: {flags}\nbugs\t\t: avx512f\n")
    monkeypatch.setattr(kernels, "_CPUINFO", tmp_path / "cpuinfo")
    assert kernels._detect_instruction_set() == name


def test_machine_is_named_without_cpuinfo(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "_CPUINFO", tmp_path / "missing")
    assert kernels._detect_instruction_set() == platform.machine()


def test_command_line_switches_onednn_on(unset, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert os.environ[SWITCH] == "1"


def test_worker_of_python_program_computes_with_onednn(unset, monkeypatch):
    """No TensorFlow is needed: the process itself is not started."""
    given: dict[str, str] = {}
    monkeypatch.setattr(workers, "worker_binary", lambda: Path("worker"))
    monkeypatch.setattr(workers, "build_loopback_shim", lambda folder: None)
    monkeypatch.setattr(OwnedProcess, "_launch", lambda self, command, environment: given.update(environment))
    monkeypatch.setattr(OwnedProcess, "pid", 1)
    worker = workers.Worker(concurrent_calls=1, threads_per_call=1, port=None)
    worker._output.close()
    worker._folder.rmdir()
    assert given[SWITCH] == "1"

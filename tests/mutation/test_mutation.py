import subprocess
import sys

import pytest

from tests.mutation import run
from tests.mutation.catalogue import CATALOGUE, Bug


def test_every_bug_can_be_planted_and_names_a_test_that_exists():
    assert len({bug.name for bug in CATALOGUE}) == len(CATALOGUE)
    for bug in CATALOGUE:
        assert bug.new != bug.old
        compile(run.plant(bug, (run.ROOT / bug.file).read_text()), bug.file, "exec")
        file, _, test = bug.test.partition("::")
        *classes, function = test.partition("[")[0].split("::")
        # A class may inherit the test.
        name = f"class {classes[0]}(" if classes else f"def {function}("
        assert name in (run.ROOT / file).read_text(), bug.name


def test_planting_a_text_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match=r"x: its text occurs 2 times in f.py: must occur once"):
        run.plant(Bug("x", "f.py", "a", "b", "t"), "a a")


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "1 passed", "SURVIVED"),
        (1, "f.py:3: AssertionError", "caught"),
        (1, "f.py:3: assert 1 == 2", "caught"),
        (1, "NameError", "CRASHED"),
        (4, "", "CRASHED"),
    ],
)
def test_only_a_failed_assertion_catches_a_bug(status, output, expected):
    assert run.verdict(subprocess.CompletedProcess([], status, output)) == expected


def test_unknown_bug_is_refused(capsys):
    assert run.main(["nonsense"]) == 2
    assert "bug = 'nonsense': must be a name in" in capsys.readouterr().err


@pytest.mark.slow
def test_every_planted_bug_is_caught():
    ran = subprocess.run([sys.executable, str(run.ROOT / "tests/mutation/run.py")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_bug_that_does_no_harm_survives(monkeypatch, capsys):
    harmless = CATALOGUE[0]._replace(new=CATALOGUE[0].old + "\n")
    monkeypatch.setattr(run, "CATALOGUE", (harmless,))
    assert run.main([]) == 1
    assert "SURVIVED" in capsys.readouterr().out

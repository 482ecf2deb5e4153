"""Wheel and sdist hold the four packages with what they need, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_house import PACKAGES, ROOT, tracked

DATA = {
    *(f"{package}/py.typed" for package in PACKAGES),
    *(f"experiments/configs/{name}.toml" for name in ("demo", "long", "production", "scratch", "si", "target")),
    "fl/runtime/loopback.c",
    *(
        f"{folder}/{path.name}"
        for folder in ("fl/fairness/report/templates", "privacy/report/templates")
        for path in (ROOT / folder).iterdir()
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """`dist` of a copy of the files under version control."""
    copy = tmp_path_factory.mktemp("build") / "fedspeak"
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    code = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    return copy / "dist"


def sources() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES
    }


def test_the_wheel(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources() | DATA


def test_the_sdist(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.name.partition("/")[2] for name in file.getmembers() if name.isfile()}
    around = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if not name.startswith("fedspeak.egg-info/")} == sources() | DATA | around


def test_the_wheel_works_outside_the_clone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    here = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", here, wheel], cwd=tmp_path, check=True)

    def run(*command: str) -> str:
        where = {**os.environ, "PYTHONPATH": str(here)}
        return subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=True).stdout

    release = """
import privacy
assert privacy.__file__.startswith({here!r}), privacy.__file__
with privacy.Releases.open("ages.jsonl", privacy.Budget(epsilon=1.0)) as ledger:
    print(privacy.dp_mean([34, 71, 25, 48, 52], lower=0, upper=100, epsilon=0.5, ledger=ledger).guarantee)
"""
    assert run(sys.executable, "-c", release.format(here=str(here))).startswith("epsilon 0.500;")
    fedspeak = str(here / "bin" / "fedspeak")
    assert "doctor" in run(fedspeak, "--help")
    settings = ["--population", "10000", "--cohort-size", "100", "--rounds", "100", "--noise-multiplier", "1", "--json"]
    assert 0.5 < json.loads(run(fedspeak, "privacy", "epsilon", *settings))["epsilon"] < 2
    run(fedspeak, "privacy", "report", "ages.jsonl")
    assert {path.name for path in tmp_path.glob("report.*")} == {"report.html", "report.json", "report.md"}

"""Tests of the keys of a run: how they are made, who may read them, and the values derived from them."""

import os
import stat

import numpy as np
import pytest

from privacy import RunKeys


def test_create_writes_fresh_keys_with_mode_0600_that_load_reads(tmp_path):
    old = os.umask(0)
    try:
        first = RunKeys.create(tmp_path / "a")
    finally:
        os.umask(old)
    second = RunKeys.create(tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert not first.is_fixed
    assert first.noise_id(0) != second.noise_id(0)
    loaded = RunKeys.load(tmp_path / "a")
    assert (loaded.noise_seed(3) == first.noise_seed(3)).all()
    assert loaded.sampler_seed(3) == first.sampler_seed(3)


def test_derived_values_differ_by_round_and_purpose():
    keys = RunKeys.fixed(7)
    assert keys.is_fixed
    seeds = {tuple(keys.noise_seed(r)) for r in range(200)} | {(keys.sampler_seed(r),) for r in range(200)}
    assert len(seeds) == 400
    assert keys.noise_seed(0).shape == (2,)
    assert keys.noise_seed(0).dtype == np.int64
    assert max(keys.sampler_seed(r) for r in range(200)).bit_length() > 120
    assert keys.noise_id(5).startswith("fixed-") and len(keys.noise_id(5)) == 22
    assert keys.noise_id(5) not in f"{keys.noise_seed(5).tobytes().hex()} {keys.sampler_seed(5):x}"
    assert RunKeys.fixed(7).noise_id(5) == keys.noise_id(5) != RunKeys.fixed(8).noise_id(5)


def test_repr_shows_no_secret(tmp_path):
    keys = RunKeys.create(tmp_path / "keys")
    assert repr(keys) == "RunKeys(is_fixed=False)"


def test_create_refuses_existing_file(tmp_path):
    RunKeys.create(tmp_path / "keys")
    with pytest.raises(FileExistsError, match="exists already"):
        RunKeys.create(tmp_path / "keys")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_load_refuses_file_open_to_others_and_names_the_fix(tmp_path, mode):
    RunKeys.create(tmp_path / "keys")
    (tmp_path / "keys").chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        RunKeys.load(tmp_path / "keys")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 1, "secret": "ab"}', '{"format": 2, "secret": "ab"}', "\x00"]
)
def test_load_refuses_damaged_file(tmp_path, content):
    (tmp_path / "keys").write_text(content)
    (tmp_path / "keys").chmod(0o600)
    with pytest.raises(ValueError, match="damaged or not a key file"):
        RunKeys.load(tmp_path / "keys")


def test_load_names_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing"):
        RunKeys.load(tmp_path / "keys")


def test_negative_rounds_and_seeds_are_refused():
    with pytest.raises(ValueError, match="round must be"):
        RunKeys.fixed(1).noise_id(-1)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        RunKeys.fixed(-1)

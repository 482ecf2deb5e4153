"""Tests of the ledger: it keeps what happened, refuses rounds that break the plan, and names damaged lines."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from privacy import AdaptiveClip, Cyclic, FixedClip, FixedSize, Ledger, Poisson, PrivacyPlan, RunKeys
from privacy.ledger import hash_chain as chain

PLAN = PrivacyPlan(Poisson(0.4), population=10, rounds=6, noise_multiplier=1.5, clip=FixedClip(0.5))
COHORTS = [["b", "a"], [], ["c", "a"], ["d"], ["a", "b", "c"], ["e"]]


def write(path, plan=PLAN, cohorts=COHORTS, start=0):
    with Ledger.open(path, plan) as ledger:
        for number, cohort in enumerate(cohorts[start:], start):
            ledger.record(**round_of(number, cohort, plan))


def round_of(number, cohort, plan=PLAN, clip=0.5):
    stddev = plan.value_noise_multiplier * clip
    return {
        "round": number,
        "cohort": cohort,
        "noise_id": f"noise{number}",
        "noise_stddev": stddev,
        "clip_norm": clip,
    }


def test_read_returns_rounds_as_recorded(tmp_path):
    write(tmp_path / "ledger")
    read = Ledger.read(tmp_path / "ledger")
    assert read.plan == PLAN
    assert [list(entry.cohort) for entry in read.rounds] == [sorted(cohort) for cohort in COHORTS]
    assert read.participations() == {"a": 3, "b": 2, "c": 2, "d": 1, "e": 1}
    assert oct((tmp_path / "ledger").stat().st_mode & 0o777) == "0o600"


def test_noise_stream_is_issued_once_and_again_to_resumed_run(tmp_path):
    keys = RunKeys.fixed(1)
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        ledger.record(**round_of(0, COHORTS[0]))
        with pytest.raises(ValueError, match="noise stream 'accuracy' was never issued: leave out resume"):
            ledger.noise_stream(keys, "accuracy", resume=True)
        seed = ledger.noise_stream(keys, "accuracy", noise_multiplier=2.0, bounds=(0, 1))
        other = ledger.noise_stream(keys, "loss", noise_multiplier=2.0)
        for resume in (False, True):
            with pytest.raises(ValueError, match="noise stream 'accuracy' was issued before"):
                ledger.noise_stream(keys, "accuracy", resume=resume, noise_multiplier=2.0, bounds=(0, 1))
        with pytest.raises(ValueError, match="facts of the noise stream cannot be recorded"):
            ledger.noise_stream(keys, "third", noise_multiplier=float("nan"))
        head = ledger.head_after(1)
        for number in range(1, 4):
            ledger.record(**round_of(number, COHORTS[number]))
    assert seed.dtype == np.int64 and seed.shape == (2,)
    seeds = [seed, other, *(keys.noise_seed(number) for number in range(5))]
    assert len({each.tobytes() for each in seeds}) == 7
    whole = (tmp_path / "ledger").read_bytes()
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        assert ledger.head_after(1) == head and len(ledger.rounds) == 4
        with pytest.raises(ValueError, match="noise stream 'accuracy' was issued before"):
            ledger.noise_stream(keys, "accuracy", noise_multiplier=2.0, bounds=(0, 1))
        with pytest.raises(ValueError, match="noise stream 'accuracy' was issued for {'bounds': "):
            ledger.noise_stream(keys, "accuracy", resume=True, noise_multiplier=1.0)
        with pytest.raises(ValueError, match="noise stream 'accuracy' was issued for {'bounds': "):
            ledger.noise_stream(RunKeys.fixed(2), "accuracy", resume=True, noise_multiplier=2.0, bounds=(0, 1))
        again = ledger.noise_stream(keys, "accuracy", resume=True, noise_multiplier=2.0, bounds=(0, 1))
        np.testing.assert_array_equal(again, seed)
        ledger.record(**round_of(0, COHORTS[0]))  # a replay of rounds before and after the streams' lines
        ledger.record(**round_of(3, COHORTS[3]))
        with pytest.raises(ValueError, match="round 3 is in the ledger with other content"):
            ledger.record(**round_of(3, ["x"]))
    assert (tmp_path / "ledger").read_bytes() == whole
    read = Ledger.read(tmp_path / "ledger").streams
    assert {name: facts.pop("noise_id") for name, facts in read.items()} == {n: keys.stream_id(n) for n in read}
    assert read == {"accuracy": {"noise_multiplier": 2.0, "bounds": [0, 1]}, "loss": {"noise_multiplier": 2.0}}


def test_a_release_is_charged_before_its_noise_and_once_for_the_same_values(tmp_path):
    keys, path = RunKeys.fixed(1), tmp_path / "ledger"
    with Ledger.open(path, PLAN) as ledger:
        ledger.record(**round_of(0, COHORTS[0]))
        seed = ledger.charge(keys, "groups", b"values", 2.0, clients=7)
        charged = path.read_bytes()
        assert [entry.purpose for entry in Ledger.read(path).releases] == ["groups"]
        # As after a kill between the line and the release: the same noise for the same values, and no further cost.
        np.testing.assert_array_equal(ledger.charge(keys, "groups", b"values", 2.0, clients=7), seed)
        assert path.read_bytes() == charged
        others = [
            ledger.charge(keys, *arguments)
            for arguments in (("groups", b"other", 2.0), ("groups", b"values", 2.5), ("sizes", b"values", 2.0))
        ]
        ledger.record(**round_of(1, COHORTS[1]))
        with pytest.raises(ValueError, match="noise_multiplier must be a finite number above 0"):
            ledger.charge(keys, "groups", b"values", 0.0)
        with pytest.raises(ValueError, match="purpose of the release is ''"):
            ledger.charge(keys, "", b"values", 1.0)
    assert len({each.tobytes() for each in (seed, *others, keys.noise_seed(0))}) == 5
    with Ledger.open(path, PLAN) as ledger:
        np.testing.assert_array_equal(ledger.charge(keys, "groups", b"values", 2.0), seed)
        assert [entry.noise_multiplier for entry in ledger.releases] == [2.0, 2.0, 2.5, 2.0]
        assert ledger.releases[0].facts == {"clients": 7} and len(ledger.rounds) == 2
    assert b"values" not in path.read_bytes()


def test_a_release_is_refused_under_a_plan_without_noise(tmp_path):
    plan = dataclasses.replace(PLAN, noise_multiplier=0.0)
    with Ledger.open(tmp_path / "ledger", plan) as ledger, pytest.raises(ValueError, match="the plan adds no noise"):
        ledger.charge(RunKeys.fixed(1), "groups", b"values", 1.0)


def test_ledger_of_version_0_1_is_refused_with_the_reason(tmp_path):
    write(tmp_path / "ledger", cohorts=[])
    header = json.loads((tmp_path / "ledger").read_text())
    old = {name: value for name, value in header.items() if name not in ("sha256", "previous")} | {"format": 1}
    (tmp_path / "old").write_bytes(chain.encode(old, chain.digest("", old)))
    with pytest.raises(ValueError, match="was begun by version 0.1, whose training noise ended at 5.68 standard dev"):
        Ledger.read(tmp_path / "old")


@pytest.mark.parametrize("stop", range(len(COHORTS)))
def test_resumed_ledger_equals_uninterrupted_one_in_every_byte(tmp_path, stop):
    write(tmp_path / "whole")
    write(tmp_path / "resumed", cohorts=COHORTS[:stop])
    # The checkpoint is two rounds behind: those rounds are recorded again, identically.
    write(tmp_path / "resumed", start=max(0, stop - 2))
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_unfinished_last_line_is_dropped_and_nothing_else(tmp_path):
    write(tmp_path / "ledger", cohorts=COHORTS[:3])
    whole = (tmp_path / "ledger").read_bytes()
    write(tmp_path / "longer", cohorts=COHORTS[:4])
    longer = (tmp_path / "longer").read_bytes()
    for size in range(len(whole) + 1, len(longer), 17):
        (tmp_path / "torn").write_bytes(longer[:size])
        assert len(Ledger.read(tmp_path / "torn").rounds) == 3
        with Ledger.open(tmp_path / "torn", PLAN) as ledger:
            assert len(ledger.rounds) == 3
        assert (tmp_path / "torn").read_bytes() == whole
    # Only the line end is missing, which an editor may have removed: the round counts.
    (tmp_path / "torn").write_bytes(longer[:-1])
    assert len(Ledger.read(tmp_path / "torn").rounds) == 4
    with Ledger.open(tmp_path / "torn", PLAN) as ledger:
        assert len(ledger.rounds) == 4
    assert (tmp_path / "torn").read_bytes() == longer
    (tmp_path / "torn").write_bytes(whole[:20])  # killed while the header was written
    write(tmp_path / "torn", cohorts=COHORTS[:3])
    assert (tmp_path / "torn").read_bytes() == whole


def test_facts_are_kept_and_must_be_repeated_by_replay(tmp_path):
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        ledger.record(**round_of(0, ["a"]), non_finite=1)
        ledger.record(**round_of(0, ["a"]), non_finite=1)
        with pytest.raises(ValueError, match="round 0 is in the ledger with other content"):
            ledger.record(**round_of(0, ["a"]), non_finite=2)
        assert len(ledger.rounds) == 1
    assert Ledger.read(tmp_path / "ledger").rounds[0].facts["non_finite"] == 1


def test_read_and_open_name_line_with_changed_byte(tmp_path):
    write(tmp_path / "ledger", cohorts=COHORTS[:3])
    lines = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        for place in range(0, len(line) - 1, 7):
            changed = bytearray(line)
            changed[place] ^= 1
            if changed[place] in b"\n":
                continue
            (tmp_path / "bad").write_bytes(b"".join([*lines[: number - 1], bytes(changed), *lines[number:]]))
            with pytest.raises(ValueError, match=f"line {number} is damaged"):
                Ledger.read(tmp_path / "bad")
            with pytest.raises(ValueError, match=f"line {number} is damaged"):
                Ledger.open(tmp_path / "bad", PLAN)


def test_read_names_first_removed_or_swapped_line(tmp_path):
    write(tmp_path / "ledger", cohorts=COHORTS[:4])
    lines = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    for changed, number in (
        (lines[:2] + lines[3:], 3),
        ([lines[0], lines[2], lines[1], *lines[3:]], 2),
        ([*lines[:2], b"\n", *lines[2:]], 3),
        (lines[1:], 1),
    ):
        (tmp_path / "bad").write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=f"line {number} is damaged"):
            Ledger.read(tmp_path / "bad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 2}, "round 2: out of order, round 1 comes next"),
        ({"round": -1}, "round -1: out of order"),
        ({"round": True}, "out of order|other content"),
        ({"cohort": [1, 2]}, r"round 1: cohort \[1, 2\] is not a list of str: give the clients' ids as str"),
        ({"cohort": ["a", None]}, "is not a list of str"),
        ({"cohort": "ben"}, "cohort 'ben' is not a list of str"),
        ({"noise_id": 7}, "noise_id 7 is not a str"),
        ({"cohort": ["a", "b", "a"]}, "client 'a' is in the cohort twice"),
        ({"cohort": list("bcdefghijkl")}, "12 different clients seen, the plan's population is 10"),
        ({"noise_stddev": 0.7}, "noise_stddev 0.7 is not the plan's 1.5 [*] clip_norm 0.5 = 0.75"),
        ({"noise_stddev": 0.75 * (1 - 1e-5)}, "noise_stddev"),
        ({"noise_stddev": float("nan")}, "cannot be recorded|noise_stddev nan"),
        ({"clip_norm": 0.6, "noise_stddev": 0.9}, "clip_norm 0.6 is not the plan's 0.5"),
        ({"clip_norm": float("inf")}, "clip.*must be a finite number|cannot be recorded"),
        ({"clip_norm": None}, "clip.*must be a finite number"),
        ({"noise_id": "noise0"}, "noise_id 'noise0' was used in round 0"),
        ({"loss": float("nan")}, "cannot be recorded"),
        ({"what": object()}, "cannot be recorded"),
    ],
)
def test_round_that_breaks_plan_is_refused_and_leaves_no_trace(tmp_path, change, message):
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        ledger.record(**round_of(0, ["a"]))
        before = (tmp_path / "ledger").read_bytes()
        with pytest.raises(ValueError, match=message) as caught:
            ledger.record(**{**round_of(1, ["b"]), **change})
        assert "\n" not in str(caught.value)
        assert (tmp_path / "ledger").read_bytes() == before
        ledger.record(**round_of(1, ["b"]))


def test_noise_computed_in_32_bits_is_accepted(tmp_path):
    import numpy as np

    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        entry = round_of(0, ["a"])
        ledger.record(**{**entry, "noise_stddev": float(np.float32(1.5) * np.float32(0.5000000001))})


def test_more_rounds_than_planned_are_refused(tmp_path):
    write(tmp_path / "ledger")
    with (
        Ledger.open(tmp_path / "ledger", PLAN) as ledger,
        pytest.raises(ValueError, match="the plan has 6 rounds"),
    ):
        ledger.record(**round_of(6, ["a"]))


def test_fixed_size_cohort_of_other_size_is_refused(tmp_path):
    plan = PrivacyPlan(FixedSize(2), 10, 6, 1.5, FixedClip(0.5))
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        ledger.record(**round_of(0, ["a", "b"], plan))
        with pytest.raises(ValueError, match="cohort of 1 clients, the plan's fixed size is 2"):
            ledger.record(**round_of(1, ["a"], plan))


def test_cyclic_client_within_separation_is_refused(tmp_path):
    plan = PrivacyPlan(Cyclic(3), 10, 7, 1.5, FixedClip(0.5))
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        for number, cohort in enumerate((["a"], ["b"])):
            ledger.record(**round_of(number, cohort, plan))
        with pytest.raises(ValueError, match="client 'a' took part in round 0, the plan allows it again from round 3"):
            ledger.record(**round_of(2, ["a"], plan))
        for number, cohort in enumerate((["c"], ["a"], ["b"], ["c"], ["a"]), 2):
            ledger.record(**round_of(number, cohort, plan))
        assert ledger.participations()["a"] == plan.max_participations == 3


def test_adaptive_clip_norm_may_vary_and_noise_must_follow(tmp_path):
    plan = PrivacyPlan(Poisson(0.5), 10, 6, 1.5, AdaptiveClip(0.5, count_stddev=2.0))
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        ledger.record(**round_of(0, ["a"], plan, clip=0.5))
        ledger.record(**round_of(1, ["a"], plan, clip=0.4))
        with pytest.raises(ValueError, match="noise_stddev"):  # the total z would be too little on the update
            ledger.record(**{**round_of(2, ["a"], plan, clip=0.4), "noise_stddev": 1.5 * 0.4})
    assert [entry.clip_norm for entry in Ledger.read(tmp_path / "ledger").rounds] == [0.5, 0.4]


def test_run_without_privacy_is_recorded(tmp_path):
    plan = PrivacyPlan(Poisson(0.5), 10, 6, 0.0, None)
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        ledger.record(round=0, cohort=["a"], noise_id="", noise_stddev=0.0, clip_norm=None)
        ledger.record(round=1, cohort=["a"], noise_id="", noise_stddev=0.0, clip_norm=None)
        with pytest.raises(ValueError, match="neither clips nor adds noise"):
            ledger.record(round=2, cohort=["a"], noise_id="", noise_stddev=1.0, clip_norm=None)


def test_open_refuses_another_plan(tmp_path):
    write(tmp_path / "ledger", cohorts=COHORTS[:2])
    other = PrivacyPlan(Poisson(0.4), population=10, rounds=9, noise_multiplier=1.0, clip=FixedClip(0.5))
    with pytest.raises(ValueError, match="another plan [(]differs in rounds, noise_multiplier[)]"):
        Ledger.open(tmp_path / "ledger", other)


def test_read_refuses_forged_round_that_breaks_plan(tmp_path):
    from privacy.ledger import hash_chain as chain

    write(tmp_path / "ledger", cohorts=COHORTS[:1])
    raw = (tmp_path / "ledger").read_bytes()
    head = json.loads(raw.splitlines()[-1])["sha256"]
    line = {"kind": "round", **round_of(1, ["a"]), "noise_stddev": 0.0, "facts": {}}
    (tmp_path / "ledger").write_bytes(raw + chain.encode(line, chain.digest(head, line)))
    with pytest.raises(ValueError, match="line 3 breaks its own plan: round 1: noise_stddev 0"):
        Ledger.read(tmp_path / "ledger")


def test_second_writer_is_refused_until_first_process_ends(tmp_path):
    path = tmp_path / "ledger"
    write(path, cohorts=COHORTS[:1])
    code = (
        "import sys; from privacy import Ledger; plan = Ledger.read(sys.argv[1]).plan\n"
        "held = Ledger.open(sys.argv[1], plan); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match="being written by another process"):
            Ledger.open(path, PLAN)
        other.kill()
    Ledger.open(path, PLAN).close()


def test_full_disk_leaves_ledger_as_it_was(tmp_path, monkeypatch):
    real = os.pwrite
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        ledger.record(**round_of(0, ["a"]))
        before = (tmp_path / "ledger").read_bytes()

        def full(descriptor, data, offset):
            if len(data) > 10:
                return real(descriptor, data[:10], offset)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="could not be written [(]No space left on device[)]"):
            ledger.record(**round_of(1, ["b"] * 1))
        monkeypatch.undo()
        assert (tmp_path / "ledger").read_bytes() == before
        ledger.record(**round_of(1, ["b"]))
    assert len(Ledger.read(tmp_path / "ledger").rounds) == 2


def test_closed_missing_or_empty_ledger_is_named(tmp_path):
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        pass
    with pytest.raises(ValueError, match="is closed"):
        ledger.record(**round_of(0, ["a"]))
    with pytest.raises(FileNotFoundError, match="is missing"):
        Ledger.read(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="is empty"):
        Ledger.read(tmp_path / "empty")
    with pytest.raises(OSError, match="missing"):
        Ledger.open(tmp_path / "missing" / "ledger", PLAN)


def test_open_refuses_file_that_is_not_a_ledger(tmp_path):
    for text in ("# Notes\nnothing\n", "no newline at all"):
        (tmp_path / "other").write_text(text)
        with pytest.raises(ValueError, match="line 1 is damaged"):
            Ledger.open(tmp_path / "other", PLAN)
        assert (tmp_path / "other").read_text() == text


def test_record_syncs_round_to_disk_before_it_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def count_sync(descriptor):
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", count_sync)
    with Ledger.open(tmp_path / "ledger", PLAN) as ledger:
        before = len(synced)
        ledger.record(**round_of(0, ["a"]))
        assert len(synced) == before + 1

"""The numbers in the prose of the page about several drafts are those of the committed results."""

import json
import re
from itertools import groupby

import numpy as np
import pytest

from experiments.bench import decoding
from tests.experiments.bench.test_results_in_docs import RESULTS
from tests.test_docs import ROOT

PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "systems" / "spectr.md").read_text())
STUDY = json.loads((RESULTS / "spectr.json").read_text())["rows"]
BENCH, SMOLLM2, K_SEQ = (
    json.loads((RESULTS / f"{name}.json").read_text()) for name in ("decoding", "decoding-smollm2", "k-seq")
)
COLUMNS = [
    {mode["mode"]: mode for mode in row["modes"]} | {"drafter": row["drafter"], "T": row["temperature"]}
    for row in STUDY
]


def modes(column, drafted=None):
    entries = [entry for entry in column.values() if isinstance(entry, dict)]
    return [entry for entry in entries if drafted in (None, entry["drafted"])]


def gains(kind):
    """Returns (mode, drafter, temperature, gain over SpecTr) of all modes of a kind."""
    return [
        (entry["mode"], column["drafter"], column["T"], entry["gain_over_spectr"])
        for column in COLUMNS
        for entry in modes(column)
        if entry["mode"].startswith(f"{kind}:") and "gain_over_spectr" in entry
    ]


def mean(values):
    return float(np.mean([value["estimate"] for *_, value in values]))


def best(column, drafted):
    return max(modes(column, drafted), key=lambda entry: entry["tokens"]["estimate"])["mode"]


def study_sentences():
    trees = gains("tree")
    estimates = [value["estimate"] for *_, value in trees]
    ahead, above = sum(value > 0 for value in estimates), sum(value["low"] > 0 for *_, value in trees)
    yield (
        f"the tree gives more tokens per call than SpecTr in {ahead} of {len(trees)} cases, by {mean(trees):.1f} % in "
        f"the mean ({min(estimates):.1f} to {max(estimates):+.1f}); in {above} of them the interval is above 0"
    )
    width = {mode: int(mode[5:].split(",")[0]) for mode, *_ in trees}
    by_width = [
        mean(list(part)) for _, part in groupby(sorted(trees, key=lambda x: width[x[0]]), lambda x: width[x[0]])
    ]
    assert sorted(set(width.values())) == [2, 3, 4, 8] and by_width[3] == max(by_width)
    yield (
        f"{by_width[3]:.1f} % in the mean with eight children, and {min(by_width):.1f} to {max(by_width[:3]):.1f} % "
        "with two to four"
    )
    behind = {(mode, drafter, temperature) for mode, drafter, temperature, value in trees if value["estimate"] < 0}
    assert behind == {("tree:3,1,1,1", "si-cifg", 1.0), ("tree:4,1,1,1", "si-cifg", 1.0)}
    yield "It is behind SpecTr for the recurrent drafter at temperature 1 with three and with four children."
    lines = [column["drafter"] for column in COLUMNS if best(column, 8) == "block:8"]
    assert sorted(lines) == ["ngram", *["si-transformer"] * 2, *["transformer"] * 2]
    yield "one line (`block:8`) is the best use for the better drafters, and in one of four columns for the weaker ones"
    assert all(best(column, 32).startswith("tree:") for column in COLUMNS)
    yield "Of 32 drafted tokens the tree leads SpecTr in every column"
    recurrent = [best(column, drafted) for column in COLUMNS if column["drafter"] == "si-cifg" for drafted in (8, 16)]
    assert sum(mode.startswith("multi-path:") for mode in recurrent) == 3 and len(recurrent) == 4
    yield f"Multi-path verification gains {mean(gains('multi-path')):.1f} % over SpecTr in the mean"
    yield f"Children without replacement gain {mean(gains('distinct-tree')):.1f} %"
    first = [entry for row in STUDY for entry in row["first"]]
    shares = [100 * entry["k_seq"] / entry["independent"] for entry in first]
    assert all(entry["distinct"] > entry["independent"] for entry in first)
    yield f"accepts {min(shares):.1f} to {max(shares):.1f} % of what the best rule accepts of its drafts"


def rows(**wanted):
    return [row for row in BENCH["rows"] if wanted.items() <= row.items()]


def interval(value):
    return f"{value['estimate']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def milliseconds(**wanted):
    return float(np.mean([row["milliseconds"] for row in rows(**wanted)]))


def plain(found):
    """Returns the milliseconds that plain decoding took for a token, in the turns of each row."""
    return [1000 * row["speed"]["estimate"] / row["per_second"] for row in found]


def bench_sentences():
    counts = {
        precision: [
            len({row["mode"] for row in rows(precision=precision, drafter=drafter)}) for drafter in BENCH["drafters"]
        ]
        for precision in ("float32", "int8")
    }
    few, many = sorted(counts["float32"])[:2], sorted(counts["float32"])[2:]
    assert few == [2, 3] and {count for count in counts["int8"] if count} == {9}
    yield f"{many[0]} to {many[1]} modes in float32 and 9 in int8 of two drafters, and 2 or 3 of the other two"
    yield f"without `--mode` there are {len(decoding.MODES)}"
    warm = rows(precision="float32", temperature=1.0)
    fastest = max(warm, key=lambda row: row["speed"]["estimate"])
    assert (fastest["mode"], fastest["drafter"]) == ("block:4", "si-transformer")
    yield f"{interval(fastest['speed'])} times as fast as plain decoding"
    two = [
        row["speed"]["estimate"]
        for name in ("si-transformer", "si-cifg")
        for row in warm
        if row["mode"] == "block:2" and row["drafter"] == name
    ]
    assert [round(value, 1) for value in two] == [1.4, 1.4]
    six = next(row for row in warm if row["mode"] == "block:6" and row["drafter"] == "ngram.npz")
    yield f"and `block:6` {100 * (six['speed']['estimate'] - 1):.0f} % with the n-gram model"
    cost = {count: value[1] for count, value in BENCH["cost"]["float32"].items()}
    yield f"({cost['5']:.2f} and {cost['1']:.2f} ms)"
    yield f"The float32 call of 9 tokens takes {cost['9'] / cost['7']:.1f} times as long as that of 7 here"
    names = ("ngram.npz", "transformer")
    ngram, transformer = (
        [milliseconds(precision="float32", drafter=name, mode=f"block:{count}") for count in (2, 4, 6)]
        for name in names
    )
    both = {f"{np.median(plain(rows(precision='float32', drafter=name))):.1f}" for name in names}
    assert len(both) == 1
    yield (
        f"takes {min(ngram):.1f} to {max(ngram):.1f} ms with the n-gram model and {min(transformer):.1f} to "
        f"{max(transformer):.1f} ms with the first transformer, where plain decoding takes {both.pop()} ms a token"
    )
    gain = max(row["speed"]["estimate"] for row in rows(precision="int8"))
    yield f"int8 gains at most {100 * (gain - 1):.0f} %"
    lines = [
        milliseconds(precision="int8", drafter=name, mode=mode)
        for name in names
        for mode in ("block:2", "speculative:2")
    ]
    step = np.median(plain(rows(precision="int8")))
    times = f"{min(lines):.1f} to {max(lines):.1f} ms"
    yield f"A plain step takes {step:.1f} ms, and a block of two drafted tokens in one line {times}"
    slow = max(row["speed"]["estimate"] for mode in ("spectr:2x4", "tree:3,1,1,1") for row in rows(mode=mode))
    yield f"`spectr:2x4` and `tree:3,1,1,1` have at most {slow:.2f} times its speed"
    cold = rows(precision="float32", temperature=0.0)
    fastest = max(cold, key=lambda row: row["speed"]["estimate"])
    assert fastest["mode"] == "tree:2,1"
    block = next(row for row in cold if row["mode"] == "block:4" and row["drafter"] == fastest["drafter"])
    yield f"{interval(fastest['speed'])}, beside {interval(block['speed'])} of `block:4`"
    longer, more = [], []
    for name in names:
        pair = [{"precision": "float32", "drafter": name, "mode": mode} for mode in ("multi-path:2x4", "block:4")]
        one, other = (milliseconds(**wanted) for wanted in pair)
        longer.append(one / other)
        one, other = (rows(**wanted, temperature=1.0)[0]["tokens"]["estimate"] for wanted in pair)
        more.append(one / other)
    yield (
        f"`multi-path:2x4` takes {longer[0]:.1f} times as long as `block:4` with the n-gram model and {longer[1]:.1f} "
        f"times with the first transformer, for {more[0]:.2f} and {more[1]:.2f} times the tokens at temperature 1"
    )
    late = [np.median(plain(rows(drafter=name))) for name in ("si-transformer", "si-cifg")]
    yield f"and {late[0]:.1f} and {late[1]:.1f} ms in the rows of the scale-invariant ones"
    yield f"Plain decoding reads {BENCH['weights'] * 4e-6:.0f} MB of weights at each step"


def k_seq_sentences():
    two, eight = ([f"{value:.2f}" for value in K_SEQ["exponents"][name][1]] for name in ("k_seq", "k_seq_8"))
    yield (
        f"as V to the power {two[0]} ({two[1]} to {two[2]}) for two drafts and {eight[0]} ({eight[1]} to {eight[2]}) "
        "for eight"
    )
    times = {row["vocabulary"]: row["milliseconds"] for row in K_SEQ["rows"]}
    programme, k_seq = np.median(times[256]["programme"]), np.median(times[1 << 18]["k_seq"])
    yield f"The programme takes {programme:.0f} ms for 256 tokens, K-SEQ {k_seq:.2f} ms for 262,144."


def smollm2_sentences():
    costs = {
        precision: {count: value[1] for count, value in SMOLLM2["cost"][precision].items()}
        for precision in ("float32", "int8")
    }
    five, nine = ([costs[name][count] / costs[name]["1"] for name in costs] for count in ("5", "9"))
    yield (
        f"A call reads 5 tokens in {five[0]:.2f} times the time of one in float32 and {five[1]:.2f} times in int8, and "
        f"9 in {nine[0]:.1f} and {nine[1]:.1f} times"
    )
    found = {(row["precision"], row["drafter"], row["temperature"]): row for row in SMOLLM2["rows"]}
    cold = [found[precision, "lookup", 0.0] for precision in ("float32", "int8")]
    (tokens,) = {f"{row['tokens']['estimate']:.1f}" for row in cold}
    yield (
        f"look-up gives {tokens} tokens per call: {interval(cold[0]['speed'])} times the speed in float32, "
        f"{interval(cold[1]['speed'])} in int8"
    )
    ngram = found["int8", "smollm2-ngram.npz", 1.0]
    tokens = f"{ngram['tokens']['estimate']:.2f}"
    yield f"gives {tokens} tokens per call and {interval(ngram['speed'])} times the speed in int8"
    others = [found["int8", name, 1.0]["tokens"]["estimate"] for name in ("lookup", "transformer")]
    yield f"({others[0]:.1f} and {others[1]:.1f} tokens per call)"
    assert all(found["int8", name, 1.0]["speed"]["high"] < 1 for name in ("lookup", "transformer"))
    own = [plain([found["int8", name, 0.0]])[0] for name in ("transformer", "lookup")]
    yield f"a plain step took {own[0]:.0f} ms and not {own[1]:.0f}"
    yield f"({SMOLLM2['weights'] / 1e6:.1f} M weights, 49,152 tokens)"


@pytest.mark.parametrize("sentences", [study_sentences, k_seq_sentences, bench_sentences, smollm2_sentences])
def test_numbers_of_the_page_are_those_of_the_results(sentences):
    for sentence in sentences():
        assert sentence in PAGE

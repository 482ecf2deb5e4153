"""Tests of reports: they state what the ledger holds, and the one for publication contains nothing secret."""

import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from privacy import (
    AdaptiveClip,
    Budget,
    CheckIn,
    Cyclic,
    CyclicPoisson,
    FixedClip,
    FixedSize,
    Ledger,
    Poisson,
    PrivacyPlan,
    Releases,
    RunKeys,
    accounting,
    report,
)
from privacy.accounting.costs import Gaussian, Pure
from privacy.accounting.guarantee import EXACT, Guarantee
from privacy.report import contents, pages

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

N = 200
EVIL = "<script>alert('x')</script>|`*"
EVALUATION = {
    "clients": 12,
    "rows": [
        {
            "name": EVIL,
            "nats": {"estimate": 3.9, "low": 3.8, "high": 4.0},
            "bits": 1.7,
            "gain": {"estimate": 0.1, "low": 0.05, "high": 0.15},
        },
        {"name": "trained", "nats": {"estimate": 3.8, "low": 3.7, "high": 3.9}, "bits": 1.6, "gain": None},
    ],
}
FACTS = {"run": f"run {EVIL}", "non_finite": 3, "evaluation": EVALUATION, "versions": {"numpy": "1.25.2"}}
OPERATOR_WORDS = ("Ledger digest", "For the operator", "took part;", "Updates zeroed")


def run(
    folder,
    sampling=None,
    z=1.0,
    clip=None,
    rounds=12,
    done=None,
    public=(f"vocabulary of {EVIL}",),
    noise="secret-noise",
    mechanism=None,
):
    plan = PrivacyPlan(
        sampling or Poisson(0.1), N, rounds, z, clip or FixedClip(0.5), public=public, mechanism=mechanism
    )
    generator = np.random.default_rng(4)
    norm = 0.5
    with Ledger.open(folder / "ledger.jsonl", plan) as ledger:
        for number in range(rounds if done is None else done):
            match plan.sampling:
                case Poisson(sampling_probability=rate):
                    cohort = np.flatnonzero(generator.random(N) < rate)
                case FixedSize(size=size):
                    cohort = generator.choice(N, size, replace=False)
                case Cyclic(cohorts=cohorts) | CyclicPoisson(cohorts=cohorts):
                    cohort = np.arange(number % cohorts, N, cohorts)
                case CheckIn(size=size, min_separation=separation):
                    cohort = np.arange(size) + size * (number % separation)
            ledger.record(
                round=number,
                cohort=[f"secret-client-{client}" for client in cohort],
                noise_id=f"{noise}-{number}",
                noise_stddev=plan.value_noise_multiplier * norm,
                clip_norm=norm,
                non_finite=number % 2,
            )
            norm *= 0.9 if isinstance(plan.clip, AdaptiveClip) else 1.0
    return plan, ledger


def build_report(facts, folder, **settings):
    plan, ledger = run(folder, **settings)
    return report.build(plan, ledger, facts)


def check_schema(value, schema, where="$"):
    """Checks `value` against a JSON Schema, for the small part of JSON Schema that the report uses."""
    kinds: dict[str, Any] = {
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    kinds["null"] = type(None)
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        allowed = [n for n in names if isinstance(value, kinds[n]) and not (n != "boolean" and isinstance(value, bool))]
        assert allowed, f"{where}: {value!r} is not of type {names}"
    assert "const" not in schema or value == schema["const"], where
    assert "enum" not in schema or value in schema["enum"], where
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert value >= schema.get("minimum", value), where
        assert value > schema.get("exclusiveMinimum", value - 1), where
        assert value < schema.get("exclusiveMaximum", value + 1), where
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), (where, set(schema["required"]) - set(value))
        known = schema.get("properties", {})
        assert schema.get("additionalProperties", True) or set(value) <= set(known), (
            where,
            set(value) - set(known),
        )
        for name in set(value) & set(known):
            check_schema(value[name], known[name], f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            check_schema(item, schema["items"], f"{where}[{place}]")


class Page(HTMLParser):
    """A parser that collects the tags and attributes of a page and checks that its tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes


SETTINGS: dict[str, dict[str, Any]] = {
    "poisson": {},
    "adaptive": {"clip": AdaptiveClip(0.5)},
    "fixed size": {"sampling": FixedSize(20)},
    "cyclic": {"sampling": Cyclic(5)},
    "not private": {"z": 0.0},
    "unfinished": {"done": 3},
    "not begun": {"done": 0},
}


@pytest.mark.parametrize("release", [False, True])
def test_epsilon_covers_charged_releases_and_the_report_names_them(tmp_path, release):
    plan, ledger = run(tmp_path)
    with Ledger.open(ledger.path, plan) as open_ledger:
        open_ledger.charge(
            RunKeys(bytes(32), is_fixed=False), f"fairness {EVIL}", b"secret-totals", 2.0, clients="secret-client"
        )
    built = report.build(plan, Ledger.read(ledger.path), FACTS, release=release)
    check_schema(built.data, json.loads(report.SCHEMA_FILE.read_text()))
    of_rounds, both = accounting.epsilon(plan).value, accounting.epsilon(plan, None, (2.0,)).value
    assert built.data["guarantee"]["epsilon"] == both > of_rounds == built.data["epsilon_of_rounds"]
    assert built.data["releases"] == [{"purpose": f"fairness {EVIL}", "noise_multiplier": 2.0}]
    assert built.data["status"] == "private"
    page, html, markdown = Page(), built.to_html(), built.to_markdown()
    page.feed(html)
    for text in (html, markdown):
        assert "further release, covered by ε" in text.lower() and "1 further release" in text.lower()
        assert "noise multiplier 2" in text and EVIL not in text and "secret-" not in text


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("release", [False, True])
def test_every_format_fits_schema_and_contains_no_secret(tmp_path, name, release):
    plan, ledger = run(tmp_path, **SETTINGS[name])
    built_report = report.build(plan, ledger, FACTS, release=release)
    check_schema(json.loads(built_report.to_json()), json.loads(report.SCHEMA_FILE.read_text()))
    assert built_report.data["guarantee"]["rounds"] == len(ledger.rounds)
    epsilon = accounting.epsilon(plan, len(ledger.rounds)).value
    assert built_report.data["guarantee"]["epsilon"] == (None if epsilon == float("inf") else epsilon)

    page, html = Page(), built_report.to_html()
    page.feed(html)
    assert not page.open
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(page.seen)
    for key, value in page.attributes:
        assert not key.startswith("on"), key
        if key in ("src", "href", "xlink:href", "action", "style"):
            assert "//" not in (value or ""), value
    assert "@import" not in html
    assert "url(http" not in html
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)

    for text in (html, built_report.to_markdown(), built_report.to_json()):
        assert "secret-client" not in text
        assert "secret-noise" not in text
        assert "<script>" not in text or text.startswith("{")
        assert (ledger.head in text) is not release
        assert any(word in text for word in OPERATOR_WORDS) is (not release and not text.startswith("{"))
    assert "operator" not in built_report.data if release else "operator" in built_report.data
    assert bool(built_report.data["omitted"]) is release


def test_operator_numbers_equal_those_of_ledger(tmp_path):
    plan, ledger = run(tmp_path)
    operator = report.build(plan, ledger, {}).data["operator"]
    sizes = [len(entry.cohort) for entry in ledger.rounds]
    assert operator["cohort_sizes"] == sizes
    assert sum(operator["participations"].values()) == N
    assert sum(int(count) * clients for count, clients in operator["participations"].items()) == sum(sizes)
    assert operator["non_finite_updates"] == 6


def test_every_format_of_run_without_noise_says_not_private(tmp_path):
    built = build_report({}, tmp_path, z=0.0)
    for text in (built.to_html(), built.to_markdown(), built.to_json()):
        assert "NOT PRIVATE" in text
        assert "differentially private, per" not in text


def test_every_format_of_run_with_fixed_key_says_so(tmp_path):
    built = build_report({}, tmp_path, noise="fixed-noise")
    assert built.data["status"] == "fixed key"
    for text in (built.to_html(), built.to_markdown(), built.to_json()):
        assert "The key is fixed" in text


def test_pld_and_rdp_are_shown_and_missing_pld_is_stated(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    poisson = build_report({}, tmp_path / "a")
    fixed = build_report({}, tmp_path / "b", sampling=FixedSize(20))
    assert poisson.data["guarantee"]["epsilon"] == poisson.data["guarantee"]["epsilon_pld"]
    assert poisson.data["guarantee"]["epsilon_rdp"] > poisson.data["guarantee"]["epsilon_pld"]
    assert fixed.data["guarantee"]["accountant"] == "RDP"
    assert fixed.data["guarantee"]["epsilon_pld"] is None
    notes = fixed.data["guarantee"]["notes"]
    assert "holds if cohorts were drawn uniformly without replacement and stay secret" in notes
    assert any("ε is computed at half the noise multiplier" in note for note in notes)
    for text in (fixed.to_html(), fixed.to_markdown()):
        assert "not available" in text
        assert "under the replace-one relation" in " ".join(text.split())


def test_adaptive_clipping_is_compared_with_fixed_clip_of_same_update_noise(tmp_path):
    plan, ledger = run(tmp_path, clip=AdaptiveClip(0.5, count_stddev=2.0))
    cost = report.build(plan, ledger, {}).data["adaptive_clipping"]
    fixed = PrivacyPlan(plan.sampling, N, plan.rounds, plan.value_noise_multiplier, FixedClip(1.0))
    assert cost["epsilon_without"] == accounting.epsilon(fixed).value < cost["epsilon_with"]
    assert cost["clip_by_round"] == pytest.approx([0.5 * 0.9**number for number in range(12)])


def test_what_if_keeps_noise_of_mean_and_delta_rule(tmp_path):
    plan, ledger = run(tmp_path)
    rows = report.build(plan, ledger, {}).data["what_if"]
    assert {row["population"] for row in rows} == {10**5, 10**6, 10**7}
    for row in rows:
        assert row["noise_multiplier"] / row["cohort"] == pytest.approx(plan.noise_multiplier / plan.expected_cohort)
        assert row["delta"] == pytest.approx(row["population"] ** -1.1)
        hypothetical = PrivacyPlan(
            Poisson(row["cohort"] / row["population"]),
            row["population"],
            12,
            row["noise_multiplier"],
            FixedClip(1.0),
        )
        assert row["epsilon"] == pytest.approx(accounting.epsilon(hypothetical).value, rel=0.05)


def test_report_states_whether_epsilon_covers_number_of_clients(tmp_path):
    cases: tuple[tuple[bool, Any, bool], ...] = (
        (False, Poisson(0.1), False),
        (True, Poisson(0.1), True),
        (False, FixedSize(20), True),  # neighbours have the same number
        (False, Cyclic(10), True),
    )
    for declared, sampling, covered in cases:
        plan = PrivacyPlan(sampling, N, 3, 1.0, FixedClip(0.5), population_declared=declared)
        with Ledger.open(tmp_path / f"{declared}{sampling.kind}.jsonl", plan) as ledger:
            line = f"The number of clients, {N}, is not covered: it was counted"
            for release in (True, False):
                data = contents.compose(plan, ledger, {}, release=release)
                assert any(line in said for said in data["not_covered"]) != covered
                assert ("number of clients: 200" in data["public"]) == declared
                assert data["planned"]["population_declared"] == declared
            text = report.build(plan, ledger, {}).write(tmp_path)[1].read_text()
            assert (line in text) != covered


def test_report_warns_of_equal_cohorts_under_poisson_plan(tmp_path):
    plan = PrivacyPlan(Poisson(0.1), N, 40, 1.0, FixedClip(0.5))
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        for number in range(40):
            names = [f"c{(number * 20 + i) % N}" for i in range(20)]
            ledger.record(round=number, cohort=names, noise_id=str(number), noise_stddev=0.5, clip_norm=0.5)
    assert any("do not look like Poisson" in line for line in report.build(plan, ledger, {}).data["warnings"])
    (tmp_path / "honest").mkdir()
    assert not any("look like" in line for line in build_report({}, tmp_path / "honest", rounds=40).data["warnings"])


def test_build_refuses_another_plan(tmp_path):
    plan, ledger = run(tmp_path)
    other = PrivacyPlan(Poisson(0.1), N, 12, 2.0, FixedClip(0.5))
    with pytest.raises(ValueError, match="the plan is not the one in ledger"):
        report.build(other, ledger, {})


def test_write_makes_three_files_and_is_repeatable(tmp_path):
    plan, ledger = run(tmp_path)
    first = report.build(plan, ledger, FACTS).write(tmp_path / "new", "r")
    assert [path.name for path in first] == ["r.html", "r.md", "r.json"]
    before = [path.read_bytes() for path in first]
    report.build(plan, ledger, FACTS).write(tmp_path / "new", "r")
    assert [path.read_bytes() for path in first] == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["r.html", "r.json", "r.md"]


@pytest.mark.parametrize(("release", "mode"), [(False, 0o600), (True, 0o644)])
def test_operator_report_has_mode_0600_in_open_folder(tmp_path, release, mode):
    plan, ledger = run(tmp_path)
    before = os.umask(0o022)
    try:
        (tmp_path / "new").mkdir(0o755)
        (tmp_path / "new" / "r.md").touch(0o644)
        written = report.build(plan, ledger, FACTS, release=release).write(tmp_path / "new", "r")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in written] == [mode] * 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "∞"), (0, "0"), (5.4011, "5.402"), (5.4, "5.400"), (0.03011, "0.0302"), (123.0, "123.000")],
)
def test_epsilon_is_rounded_up(value, shown):
    assert pages.format_infinite_epsilon(value) == shown


@pytest.mark.parametrize(("pld", "stated", "other"), [(79.25, "RDP", "PLD"), (70.0, "PLD", "RDP"), (None, "RDP", None)])
def test_report_states_smaller_epsilon_and_its_accountant(pld, stated, other):
    plan = PrivacyPlan(Poisson(1e-5), 10**8, 104_367, 0.2, FixedClip(1.0))
    assert plan.relation is not None
    spent = accounting.Epsilon(pld, 75.0, 1.4, plan.relation, plan.target_delta, plan.rounds)
    said = contents._describe_guarantee(plan, spent)
    assert said["accountant"] == stated and said["epsilon"] == min(75.0, pld or math.inf)
    for template in ("report.md.jinja", "report.html.jinja"):
        source = (report.SCHEMA_FILE.parent / template).read_text()
        (line,) = [line for line in source.splitlines() if "ε by PLD" in line]
        shown = (
            pages.make_environment(report.SCHEMA_FILE.parent, html=False)
            .from_string(line)
            .render(guarantee=said, unless_fixed="")
        )
        assert ("not available" in shown) == (pld is None)
        assert ("the ε stated" in shown) == (stated == "PLD") and ("another upper bound" in shown) == (other == "PLD")


@pytest.mark.parametrize(
    ("costs_", "delta", "accountant", "words"),
    [
        (
            (Gaussian(3.0),),
            1e-5,
            "PLD",
            "one privacy loss distribution over all of them, or the exact curve of the Gaussian mechanism",
        ),
        ((Gaussian(0.2, 1_000_000, 1e-5),), 1e-9, "RDP", "Rényi divergences add up"),
        ((Pure(0.5),), 0.0, "sum", "epsilons add up"),
    ],
)
def test_report_on_releases_states_accountant(tmp_path, costs_, delta, accountant, words):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(200.0, delta)) as ledger:
        ledger.record(Guarantee("a sum", costs_, "add-or-remove-one", delta, EXACT))
        said = report.of_releases(ledger)
    assert said.data["guarantee"]["accountant"] == accountant
    assert said.data["guarantee"]["composition"] == words and words in said.to_markdown()

"""The tables in the docs are those of the committed results files."""

import json
import re

import pytest

from experiments import assembly, config_file
from experiments.bench import cohort_size, decoding, k_seq, measure, population, pretrained, samplers, table, verifiers
from experiments.bench.simulation import _PEERS, OURS
from experiments.reproduce import (
    alignment,
    best_of_n,
    best_of_n_models,
    block_verification,
    blockwise_tables,
    coupling,
    cvar_format,
    dp_ftrl,
    drafters,
    inference_time,
    si_analysis,
    si_tables,
    spectr,
)
from tests.test_docs import ROOT

RESULTS, PAGE = ROOT / "docs" / "results", (ROOT / "docs" / "performance.md").read_text()


def section(name: str, page: str = PAGE) -> str:
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["simulation-avx512", "simulation-avx2", "simulation-transformer"])
def test_overview_of_the_simulation_benchmark_is_that_of_its_results(name):
    results = json.loads((RESULTS / f"{name}.json").read_text())
    cases = [
        measure.Case(**{**case, "runs": [measure.Run(**run) for run in case["runs"]]}) for case in results["cases"]
    ]
    peers = [measure.Peer(peer, *arguments) for peer, arguments in _PEERS.items()]
    assert section(name) == table.overview(cases, peers, OURS)
    assert ("limited to AVX2" in results["machine"]) == (name == "simulation-avx2")


def test_table_of_steps_and_products_is_that_of_its_results():
    avx512, avx2 = (json.loads((RESULTS / f"kernels-{kind}.json").read_text())["steps"] for kind in ("avx512", "avx2"))
    rows = section("kernels").splitlines()[2:]
    assert len(rows) == len(avx512) == len(avx2)
    for row in rows:
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        one, other = avx512[name], avx2[name]
        expected = [f"{one['gigaflop']:.2f}"]
        for step in (one, other):
            expected += [f"{step['products']:.2f}", f"{step['step']:.2f}", f"{step['products'] / step['step']:.0%}"]
        assert cells == expected


def test_tables_of_population_and_cohorts_are_those_of_their_results():
    results = json.loads((RESULTS / "population.json").read_text())
    written = population._format_table(results["build"], results["use"], results["draw"])
    assert section("population") in written
    assert section("cohort") == cohort_size._format_table(json.loads((RESULTS / "cohort.json").read_text())["rounds"])


def test_table_of_the_imported_model_is_that_of_its_results():
    page = (ROOT / "docs" / "transformers.md").read_text()
    assert section("smollm2", page) == pretrained.format_table(json.loads((RESULTS / "smollm2.json").read_text()))


def test_table_of_target_and_drafters_is_that_of_its_results():
    page = (ROOT / "docs" / "transformers.md").read_text()
    assert section("drafters", page) == drafters.format_table(
        json.loads((RESULTS / "drafters.json").read_text())["models"]
    )


def test_tables_of_the_coupling_study_are_those_of_its_results():
    page = (ROOT / "docs" / "systems" / "couplings.md").read_text()
    assert section("coupling", page) == coupling.format_table(json.loads((RESULTS / "coupling.json").read_text()))
    pretrained_target = json.loads((RESULTS / "coupling-smollm2.json").read_text())
    assert section("coupling-smollm2", page) == coupling.format_models(pretrained_target["models"])


def test_tables_of_block_verification_are_those_of_its_results():
    page = (ROOT / "docs" / "systems" / "block-verification.md").read_text()
    results = json.loads((RESULTS / "block-verification.json").read_text())
    assert section("block-verification", page) == block_verification.format_table(results["rows"])


def test_table_of_samplers_is_that_of_its_results():
    page = (ROOT / "docs" / "systems" / "block-verification.md").read_text()
    assert section("samplers", page) == samplers.format_table(json.loads((RESULTS / "samplers.json").read_text()))


def test_table_of_verifiers_is_that_of_its_results():
    assert section("verifiers") == verifiers.format_table(json.loads((RESULTS / "verifiers.json").read_text())["rows"])


def test_tables_of_several_drafts_are_those_of_their_results():
    page = (ROOT / "docs" / "systems" / "spectr.md").read_text()
    assert section("spectr", page) == spectr.format_table(json.loads((RESULTS / "spectr.json").read_text())["rows"])
    assert section("k-seq", page) == k_seq.format_table(json.loads((RESULTS / "k-seq.json").read_text()))
    for name in ("decoding", "decoding-smollm2"):
        assert section(name, page) == decoding.format_results(json.loads((RESULTS / f"{name}.json").read_text()))


def test_tables_of_blockwise_decoding_are_those_of_their_results():
    page = (ROOT / "docs" / "systems" / "blockwise.md").read_text()
    results = json.loads((RESULTS / "blockwise.json").read_text())
    assert section("blockwise", page) == blockwise_tables.format_tables(results)


def test_tables_of_correlated_noise_are_those_of_their_results():
    page = (ROOT / "docs" / "systems" / "dp-ftrl.md").read_text()
    results = json.loads((RESULTS / "dp-ftrl.json").read_text())
    assert section("dp-ftrl", page) == dp_ftrl.format_study(results)
    # The page says how the peak memory grows with the history.
    by_name = {row["mechanism"]: row for row in results["timing"]}
    plain = by_name["independent noise"]["peak_bytes"]
    assert all(row["peak_bytes"] <= plain + 13 * row["history_bytes"] for row in by_name.values())
    # The page says that a tree of 2000 rounds has 1.7 times the error of a BLT, and few bands more than a tree.
    errors = {row["mechanism"]: row["error"] for row in results["errors"]["long"]}
    assert f"{errors['tree'] / errors['BLT']:.1f}" == "1.7" and errors["banded, 16 bands"] > errors["tree"]


def test_tables_of_alignment_are_those_of_their_results():
    pages = {name: (ROOT / "docs" / "systems" / f"{name}.md").read_text() for name in ("alignment", "best-of-n")}
    for name, page, study in (
        ("alignment", "alignment", alignment),
        ("best-of-n", "best-of-n", best_of_n),
        ("inference-time", "best-of-n", inference_time),
    ):
        assert section(name, pages[page]) == study.format_table(json.loads((RESULTS / f"{name}.json").read_text()))
    rows = json.loads((RESULTS / "best-of-n-smollm2.json").read_text())["models"]
    table = "\n".join(best_of_n_models.format_rows(rows)[2:]) + "\n"
    assert section("best-of-n-smollm2", pages["best-of-n"]) == table
    # The page says that D̂ follows the KL of 64 texts where the formula does not.
    last = rows[0]["numbers"][-1]
    assert (f"{last['estimate']['estimate']:.2f}", f"{last['formula']:.2f}") == ("2.76", "3.17")
    assert f"{1 - rows[0]['distinct'] / rows[0]['samples']:.0%}" == "8%"


def test_tables_of_fairness_over_many_groups_are_those_of_their_results():
    page = (ROOT / "docs" / "systems" / "fairness.md").read_text()
    results = json.loads((RESULTS / "cvar-fairness.json").read_text())
    assert section("cvar-fairness", page) == cvar_format.format_table(results)


def test_tables_of_the_study_of_scale_invariance_are_those_of_its_results():
    page = (ROOT / "docs" / "systems" / "si-study.md").read_text()
    results = json.loads((RESULTS / "si.json").read_text())
    assert section("si", page) == si_tables.format_tables(results)
    assert results["scale"] == "small"
    # The demo's cell is the one that follows, as soon as it is known.
    cell = assembly.build_model(config_file.load("demo"), 300).config()["cell"]
    assert si_analysis.choose_cell(si_tables.read(results)) in (cell, si_analysis.NOT_MEASURED)

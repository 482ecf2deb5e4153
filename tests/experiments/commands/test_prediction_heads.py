"""Commands on models with prediction heads: pretraining, federated training, evaluation and export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.runs import load_trained
from models.heads import HeadedLanguageModel
from models.presets import preset
from models.vocabulary import Vocabulary
from tests.experiments.model_folders import write_model
from tests.experiments.processes import call

HEADS = ("model.prediction_heads=3",)
NO_NOISE = ("privacy.noise_multiplier=0", "privacy.clip_quantile=none", "privacy.clip_count_stddev=none")
FROM = ("model.embedding=none", "model.units=none", "vocabulary.size=none")


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def run(command: str, folder: Path, name: str, *arguments: str) -> tuple[Path, str]:
    """Runs a training command; returns its folder and what it printed."""
    code, out, err = call(
        command, str(folder / "config.toml"), "--output", str(folder / name), *arguments, folder=folder
    )
    assert code == 0, err
    return folder / name, out


def load(path: Path) -> tuple[HeadedLanguageModel, dict[str, np.ndarray]]:
    model, weights, _ = load_trained(path)
    assert isinstance(model, HeadedLanguageModel)
    return model, weights


@pytest.fixture(scope="module")
def base(folder) -> Path:
    model = preset("tiny", 259, embedding=8, units=12)
    words = Vocabulary((b"",) * 3 + tuple(bytes([byte]) for byte in range(256)))
    write_model(folder / "heads-base", model, words)
    return folder / "heads-base"


@pytest.fixture(scope="module")
def joint(folder) -> tuple[Path, str]:
    return run("pretrain", folder, "heads-joint", *options(*HEADS))


@pytest.fixture(scope="module")
def frozen(folder, base) -> tuple[Path, str]:
    """Heads with the settings of the run that they are trained on, but for the shape of its model."""
    run_of_base, settings = folder / "heads-run", options(*HEADS, "pretraining.epochs=2")
    shutil.copytree(base, run_of_base)
    shutil.copy(folder / "config.toml", run_of_base)
    arguments = ("--heads-on", str(run_of_base), "--output", str(folder / "heads-frozen"), *settings)
    code, out, err = call("pretrain", *arguments, folder=folder)
    assert code == 0, err
    return folder / "heads-frozen", out


def test_joint_pretraining_moves_base_and_heads_and_reports_each_head(joint):
    path, out = joint
    model, weights = load(path)
    assert (model.prediction_heads, model.config()["units"]) == (3, 12)
    initial = model.init(0)
    assert all(not np.array_equal(weight, initial[name]) for name, weight in weights.items() if name != "head_1")
    results = json.loads((path / "heads.json").read_text())
    assert [row["head"] for row in results["heads"]] == [1, 2, 3] and 1 <= results["h_max"] <= 3
    assert (
        f"Prediction heads on held-out public text (sequences); 95 % bootstrap intervals. h_max = {results['h_max']}"
        in out
    )
    for row in results["heads"]:
        assert f"| {row['head']} | {row['tokens']} | {row['accuracy']['estimate']:.3f} [" in out
        assert row["accuracy"]["low"] <= row["accuracy"]["estimate"] <= row["accuracy"]["high"]
        assert 0 < row["entropy"]["estimate"] <= np.log(300) + 1e-3


def test_pretraining_on_a_frozen_base_moves_the_heads_alone(base, frozen):
    model, weights = load(frozen[0])
    of_base, heads = model.split(weights)
    base_model, expected, _ = load_trained(base)
    assert model.base == base_model
    for name, weight in expected.items():
        np.testing.assert_array_equal(of_base[name], weight)
    initial = model.init_heads(0)
    assert heads.keys() == initial.keys()
    assert all(not np.array_equal(weight, initial[name]) for name, weight in heads.items())
    results = json.loads((frozen[0] / "heads.json").read_text())
    assert all(row["loss"]["estimate"] > 0 for row in results["heads"])


def test_training_on_a_frozen_base_that_was_killed_at_its_end_is_finished(folder, frozen, tmp_path):
    shutil.copytree(frozen[0], tmp_path / "run")
    (tmp_path / "run" / "weights.npz").unlink()
    code, _, err = call("pretrain", "--resume", str(tmp_path / "run"), folder=folder)
    assert code == 0, err
    for name, weight in load(tmp_path / "run")[1].items():
        np.testing.assert_array_equal(weight, load(frozen[0])[1][name])


def test_evaluate_reports_each_head_on_text_files(folder, frozen):
    code, out, err = call("evaluate", str(frozen[0]), "--text", str(folder / "public.txt"), folder=folder)
    assert code == 0, err
    assert "Prediction heads on the same text (sequences)" in out and out.count("\n| 3 | ") == 1


@pytest.mark.slow
def test_federated_training_under_differential_privacy_moves_the_heads(folder, joint):
    settings = options(
        *HEADS, *FROM, f"model.init={joint[0]}", "pretraining.epochs=0", "run.rounds=1", "run.fixed_key=none"
    )
    path, out = run("train", folder, "heads-federated", *settings)
    model, weights = load(path)
    before = load(joint[0])[1]
    assert all(not np.array_equal(weight, before[name]) for name, weight in weights.items())
    guarantee = json.loads((path / "report.json").read_text())["guarantee"]
    assert 0 < guarantee["epsilon"] < 5
    assert "Prediction heads on the test clients" in out
    assert [row["head"] for row in json.loads((path / "heads.json").read_text())["heads"]] == [1, 2, 3]


@pytest.mark.slow
def test_federated_training_without_noise_moves_the_heads_by_their_gradients(folder, joint):
    """Noise would move weights without a gradient too."""
    settings = options(*HEADS, *FROM, f"model.init={joint[0]}", "pretraining.epochs=0", "run.rounds=1", *NO_NOISE)
    path, _ = run("train", folder, "heads-without-noise", *settings)
    before = load(joint[0])[1]
    assert all(not np.array_equal(weight, before[name]) for name, weight in load(path)[1].items())


@pytest.mark.slow
def test_export_writes_the_base_model(folder, joint):
    arguments = ("--precision", "int8", "--max-prompt", "4", "--max-new-tokens", "4", "--drafter", "self")
    code, out, err = call("export", str(joint[0]), *arguments, folder=folder)
    assert code == 0, err
    assert (joint[0] / "model-int8.tflite").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.prediction_heads=0"], "model.prediction_heads = 0: must be an integer, at least 1 and at most 16"),
        (["model.prediction_heads=17"], "model.prediction_heads = 17: must be an integer, at least 1 and at most 16"),
        (["model.prediction_heads=9"], "model.prediction_heads = 9 is more than clients.sequence_length = 8, so that"),
        (["pretraining.freeze_base=true"], "trains prediction heads on the model of model.init: set model.init, and"),
        (
            ["model.init={joint}", "pretraining.freeze_base=true", *FROM],
            "pretraining.freeze_base = true trains prediction heads",
        ),
        (["model.init={joint}", *FROM], "model.prediction_heads = 1: the model of model.init has 3 prediction heads"),
        (
            ["model.init={joint}", "model.prediction_heads=4", *FROM],
            "model.prediction_heads = 4: the model of model.init has 3 prediction heads; give this number",
        ),
    ],
)  # fmt: skip
def test_bad_setting_is_refused_in_one_line(folder, joint, tmp_path, refuse, settings, message):
    shown = [setting.format(joint=joint[0]) for setting in settings]
    error = refuse("pretrain", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *options(*shown))
    assert message in error
    assert not (tmp_path / "run").exists()


def test_federated_training_refuses_a_frozen_base_and_leaves_no_folder(folder, base, tmp_path, refuse):
    settings = options(*HEADS, *FROM, f"model.init={base}", "pretraining.freeze_base=true")
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *settings)
    assert "pretraining.freeze_base = true: federated rounds train the model of model.init with the heads" in message
    assert not (tmp_path / "run").exists()


def test_wrong_base_of_heads_is_refused(folder, base, tmp_path, joint, refuse):
    arguments = ["pretrain", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *options(*HEADS)]
    for nowhere in (f"{folder}/none", ""):
        for config in (arguments, ["pretrain"]):
            message = refuse(*config, "--heads-on", nowhere, *options(*FROM))
            assert f"--heads-on {nowhere!r}: does not exist: give the folder of a model" in message
    assert "model.embedding has no effect with model.init" in refuse(*arguments, "--heads-on", str(joint[0]))
    nameless = refuse("pretrain", "--heads-on", str(base), "--output", str(tmp_path / "run"), *options(*HEADS))
    assert f"--heads-on {base}: names no public text (no config.toml): give a config before it" in nameless
    assert "drop --set and --output and --heads-on" in refuse("pretrain", "--resume", "x", "--heads-on", "y")


def test_heads_on_needs_a_number_of_heads(folder, base, frozen, tmp_path, refuse):
    expected = "--heads-on {} needs --set model.prediction_heads=N, with N from 2 to 16"
    message = refuse("pretrain", "--heads-on", str(folder / "heads-run"), "--output", str(tmp_path / "run"))
    assert message.endswith(expected.format(folder / "heads-run"))
    shutil.copytree(base, tmp_path / "7")  # a name that could be taken for a number
    message = refuse("pretrain", str(folder / "config.toml"), "--heads-on", "7", *options(*FROM))
    assert message.endswith(expected.format("7"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["model.init=elsewhere", "pretraining.freeze_base=false", "model . init = x"])
def test_heads_on_refuses_settings_that_it_sets(folder, base, refuse, setting):
    message = refuse("pretrain", str(folder / "config.toml"), "--heads-on", str(base), *options(*HEADS, *FROM, setting))
    assert f"--set {setting} does not go with --heads-on {base}, which sets " in message and "drop one" in message


def test_bad_number_of_heads_in_a_model_folder_names_the_file(folder, frozen, tmp_path, refuse):
    shutil.copytree(frozen[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "model.json").read_text())
    (tmp_path / "run" / "model.json").write_text(json.dumps({**config, "prediction_heads": 99}))
    message = refuse("evaluate", str(tmp_path / "run"), "--text", str(folder / "public.txt"))
    assert "run/model.json: prediction_heads: 99 is not an integer from 1 to 16; restore the file" in message

import subprocess
import sys

import numpy as np
import pytest

from models.presets import NAMES, from_config, preset


def parameters(model):
    return sum(int(np.prod(shape)) for shape in model.shapes().values())


# vocabulary x embedding + 3 gates x (input + output + bias) x units + projection, typed out by hand.
@pytest.mark.parametrize(
    ("name", "cell", "expected"),
    [
        ("cifg-4.7m", "cifg", 4000 * 256 + 3 * (256 + 256 + 1) * 2048 + 2048 * 256),
        ("si-cifg-4.7m", "si-cifg", 4_700_160),
        ("cifg-18.8m", "cifg", 4000 * 1024 + 3 * (1024 + 1024 + 1) * 2048 + 2048 * 1024),
        ("si-cifg-18.8m", "si-cifg", 18_782_208),
    ],
)
def test_a_preset_has_the_parameters_of_its_name(name, cell, expected):
    model = preset(name)
    assert model.cell == cell
    assert parameters(model) == expected
    assert f"{expected / 1e6:.1f}m" in name


def test_tiny_takes_its_vocabulary_size_from_the_caller():
    model = preset("tiny", 1024)
    assert (model.vocabulary_size, model.embedding, model.units) == (1024, 96, 192)
    assert parameters(model) == 1024 * 96 + 3 * 193 * 192 + 192 * 96 == 227_904
    with pytest.raises(ValueError, match="give vocabulary_size"):
        preset("tiny")


def test_the_vocabulary_size_of_a_large_preset_may_be_changed():
    assert preset("cifg-4.7m", 500).vocabulary_size == 500


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_its_config(name):
    model = preset(name, 300)
    assert from_config(model.config()) == model


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="preset: 'huge' is not one of tiny, cifg-4.7m"):
        preset("huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"depth": 3}, "depth"),
        ({"units": "many"}, "units: 'many' is not a positive integer"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        from_config({**preset("tiny", 300).config(), **change})
    assert "\n" not in str(error.value)


def test_a_config_without_an_entry_names_it():
    config = preset("tiny", 300).config()
    del config["units"]
    with pytest.raises(ValueError, match="units"):
        from_config(config)


def test_importing_the_package_and_the_names_loads_no_tensorflow():
    code = "import sys, models, models.presets, models.language_model; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

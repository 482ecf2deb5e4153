import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from models import presets
from models.presets import NAMES, from_config

preset: Any = presets.preset  # whose attributes depend on the architecture


def parameters(model):
    return sum(int(np.prod(shape)) for shape in model.shapes().values())


# Written out: vocabulary x embedding + 3 gates x (input + recurrent output + bias) x units + units x projection.
@pytest.mark.parametrize(
    ("name", "cell", "expected"),
    [
        ("cifg-4.7m", "cifg", 4000 * 256 + 3 * (256 + 256 + 1) * 2048 + 2048 * 256),
        ("si-cifg-4.7m", "si-cifg", 4_700_160),
        ("cifg-18.8m", "cifg", 4000 * 1024 + 3 * (1024 + 1024 + 1) * 2048 + 2048 * 1024),
        ("si-cifg-18.8m", "si-cifg", 18_782_208),
    ],
)
def test_preset_has_the_number_of_parameters_in_its_name(name, cell, expected):
    model = preset(name)
    assert model.cell == cell
    assert parameters(model) == expected
    assert f"{expected / 1e6:.1f}m" in name


# Written out: vocabulary x embedding + blocks x (4 projections + 2 feed-forward matrices), and for a scale-invariant
# model the matrix that makes the embedding of degree 2.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer-4m", 4000 * 128 + 6 * (4 * 128 * 128 + 2 * 128 * 2048)),
        ("si-transformer-4m", 4_050_944 + 128 * 128),
        ("transformer-21m", 4000 * 512 + 6 * (4 * 512 * 512 + 2 * 512 * 2048)),
        ("si-transformer-21m", 20_922_368 + 512 * 512),
    ],
)
def test_transformer_preset_has_the_number_of_parameters_in_its_name(name, expected):
    model = preset(name)
    assert parameters(model) == expected
    assert f"-{expected / 1e6:.0f}m" in name
    scale_invariant = (model.attention, model.norm_epsilon, model.degree_two_embedding) == ("relu", 0.0, True)
    assert scale_invariant == name.startswith("si-")


def test_preset_takes_changes_and_refuses_those_of_the_other_architecture():
    assert preset("transformer-4m", 300, blocks=2).blocks == 2
    with pytest.raises(ValueError, match="preset: .*units"):
        preset("transformer-4m", 300, units=5)


def test_tiny_preset_needs_a_vocabulary_size():
    model = preset("tiny", 1024)
    assert (model.vocabulary_size, model.embedding, model.units) == (1024, 96, 192)
    assert parameters(model) == 1024 * 96 + 3 * 193 * 192 + 192 * 96 == 227_904
    with pytest.raises(ValueError, match="give vocabulary_size"):
        preset("tiny")


def test_large_preset_accepts_another_vocabulary_size():
    assert preset("cifg-4.7m", 500).vocabulary_size == 500


@pytest.mark.parametrize("name", NAMES)
def test_from_config_rebuilds_a_preset(name):
    model = preset(name, 300)
    assert from_config(model.config()) == model


def test_preset_refuses_an_unknown_name_and_lists_the_known_ones():
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
def test_from_config_refuses_wrong_entries_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        from_config({**preset("tiny", 300).config(), **change})
    assert "\n" not in str(error.value)


def test_from_config_names_a_missing_entry():
    config = preset("tiny", 300).config()
    del config["units"]
    with pytest.raises(ValueError, match="units"):
        from_config(config)


def test_importing_package_and_presets_does_not_load_tensorflow():
    code = "import sys, models, models.presets, models.language_model; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

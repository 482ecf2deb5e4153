import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import config_file, config_reference
from experiments.config import Config, DataConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_shipped_configs_are_valid_and_survive_dump_and_parse():
    files = sorted(config_file.CONFIGS.glob("*.toml"))
    assert {file.stem for file in files} >= {"demo"}
    for file in files:
        config = config_file.load(file.stem)
        assert config_file.parse(config_file.dump(config), "dumped") == config


@given(TEXT, st.tuples(TEXT, TEXT), st.booleans(), st.just(0.0) | st.floats(1e-37, 0.999))
def test_config_survives_dump_and_parse(path, public, strict, share):
    config = Config(data=DataConfig(path=path, public=public, strict=strict, held_out=share))
    assert config_file.parse(config_file.dump(config), "dumped") == config


def test_overrides_take_precedence_over_file():
    config = config_file.parse(
        "[run]\nrounds = 3\n", "x", ["run.rounds=5", "model.preset=tiny", 'data.public=["a", "b"]']
    )
    assert (config.run.rounds, config.model.preset, config.data.public) == (5, "tiny", ("a", "b"))


def test_integer_is_accepted_for_float_but_float_is_refused_for_integer():
    assert config_file.parse("[clients]\nlearning_rate = 1\n", "x").clients.learning_rate == 1.0
    with pytest.raises(ValueError, match="clients.epochs = 1.0: must be an integer"):
        config_file.parse("[clients]\nepochs = 1.0\n", "x")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[privcy]", [], r"unknown section \[privcy\]; did you mean privacy\?"),
        ("[privacy]\nepsilo = 1", [], r"unknown key privacy.epsilo; did you mean epsilon\?"),
        ("[run]\nzzz = 1", [], "unknown key run.zzz; known are rounds"),
        ("[run]\nrounds = '3'", [], "run.rounds = '3': must be an integer, at least 1"),
        ("[run]\nrounds = true", [], "run.rounds = True: must be an integer"),
        ("[privacy]\nclip_quantile = 1.5", [], "privacy.clip_quantile = 1.5: must be .*above 0 and below 1"),
        ("[privacy]\nclip_quantile = 1", [], "privacy.clip_quantile = 1.*: must be .*above 0 and below 1"),
        ("[data]\nstrict = 1", [], "data.strict = 1: must be true or false"),
        ("[data]\npublic = 'a'", [], "data.public = 'a': must be a list of strings"),
        ("[data]\nmerge_ids = 'lower'", [], "data.merge_ids = 'lower': must be one of 'normalize'"),
        ("[clients]\nlearning_rate = nan", [], "clients.learning_rate = nan: must be a positive number"),
        ("[clients]\nlearning_rate = -inf", [], "clients.learning_rate = -inf: must be a positive number"),
        (
            "[clients]\nlearning_rate = 1e39",
            [],
            "learning_rate = 1e.39: must be a positive number, 1e-37 to 1e.38",
        ),
        ("[privacy]\nclip_norm = 1e-50", [], "privacy.clip_norm = 1e-50: must be a positive number"),
        (f"[privacy]\nclip_norm = 1{'0' * 400}", [], "privacy.clip_norm = 10*: must be a positive number"),
        ("", ["run.rounds=3\nrun.x=1"], "run.rounds = '3.nrun.x=1': must be an integer"),
        (
            "[server]\noptimizer = 'adm'",
            [],
            "server.optimizer = 'adm': must be one of 'adagrad', 'adam', 'momentum', 'yogi'",
        ),
        ("run = 3", [], "run is a section, not a value"),
        ("run = 3", ["run.rounds=1"], "run is a section, not a value"),
        ("", ["run=3"], "--set run=3: write section.key=value"),
        ("", ["run.rounds"], "--set run.rounds: write section.key=value"),
        ("x", [], "is not TOML: "),
    ],
)
def test_errors_name_the_key_and_the_fix(text, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        config_file.parse(text, "file.toml", overrides)
    assert "\n" not in str(caught.value)


def test_missing_file_error_names_shipped_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give a TOML file, or one of .*demo"):
        config_file.load(tmp_path / "none.toml")


def test_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[run]\nrounds = 3\n")
    assert config_file.load(tmp_path / "x.toml").run.rounds == 3


def test_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        config_file.load(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cohort.rate", "cohort.sampling_probability"),
        ("privacy.clip", "privacy.clip_norm"),
        ("privacy.count_stddev", "privacy.clip_count_stddev"),
        ("run.users_at_once", "run.clients_at_once"),
    ],
)
def test_key_of_version_0_1_is_refused_with_its_new_name(old, new):
    with pytest.raises(ValueError, match=f"{old} is now {new}: rename the key"):
        config_file.parse("", "file.toml", [f"{old}=1"])


def test_schema_describes_every_key_with_its_range():
    schema = config_reference.schema()
    section = schema["$defs"]["RunConfig"]["properties"]
    assert section["rounds"]["minimum"] == 1 and section["rounds"]["default"] == 20
    described = [definition for name, definition in schema["$defs"].items() if name != "Config"]
    for definition in described:
        assert definition["additionalProperties"] is False
        assert all("description" in str(key) for key in definition["properties"].values())

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import config as configs
from experiments.config import Config, DataConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_every_shipped_config_is_valid_and_comes_back_as_it_was():
    files = sorted(configs.CONFIGS.glob("*.toml"))
    assert {file.stem for file in files} >= {"demo"}
    for file in files:
        config = configs.load(file.stem)
        assert configs.parse(configs.dump(config), "dumped") == config


@given(TEXT, st.tuples(TEXT, TEXT), st.booleans(), st.just(0.0) | st.floats(1e-37, 0.999))
def test_a_dumped_config_comes_back_as_it_was(path, public, strict, share):
    config = Config(data=DataConfig(path=path, public=public, strict=strict, held_out=share))
    assert configs.parse(configs.dump(config), "dumped") == config


def test_overrides_go_on_top():
    config = configs.parse("[run]\nrounds = 3\n", "x", ["run.rounds=5", "model.preset=tiny", 'data.public=["a", "b"]'])
    assert (config.run.rounds, config.model.preset, config.data.public) == (5, "tiny", ("a", "b"))


def test_a_whole_number_does_for_a_number_and_not_the_other_way_round():
    assert configs.parse("[clients]\nlearning_rate = 1\n", "x").clients.learning_rate == 1.0
    with pytest.raises(ValueError, match="clients.epochs is 1.0: a whole number is needed"):
        configs.parse("[clients]\nepochs = 1.0\n", "x")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[privcy]", [], r"unknown section \[privcy\]; did you mean privacy\?"),
        ("[privacy]\nepsilo = 1", [], r"unknown key privacy.epsilo; did you mean epsilon\?"),
        ("[run]\nzzz = 1", [], "unknown key run.zzz; known are rounds"),
        ("[run]\nrounds = '3'", [], "run.rounds is '3': a whole number is needed"),
        ("[run]\nrounds = true", [], "run.rounds is True: a whole number is needed"),
        ("[data]\nstrict = 1", [], "data.strict is 1: true or false is needed"),
        ("[data]\nmerge_ids = 'lower'", [], "data.merge_ids is 'lower': one of 'normalize' is needed"),
        ("[data]\npublic = 'a'", [], "data.public is 'a': a list of texts is needed"),
        ("[clients]\nlearning_rate = nan", [], "clients.learning_rate is nan: a finite number is needed"),
        ("[clients]\nlearning_rate = -inf", [], "clients.learning_rate is -inf: a finite number is needed"),
        (
            "[clients]\nlearning_rate = 1e39",
            [],
            "learning_rate is 1e.39: a finite number is needed, in size from 1e-37",
        ),
        ("[privacy]\nclip = 1e-50", [], "privacy.clip is 1e-50: a finite number is needed"),
        (f"[privacy]\nclip = 1{'0' * 400}", [], "privacy.clip is 10*: a finite number is needed"),
        ("", ["run.rounds=3\nrun.x=1"], "run.rounds is '3.nrun.x=1': a whole number is needed"),
        ("[server]\noptimizer = 'adm'", [], "server.optimizer is 'adm': one of 'momentum', 'adam'"),
        ("run = 3", [], "run is a section, not a value"),
        ("run = 3", ["run.rounds=1"], "run is a section, not a value"),
        ("", ["run=3"], "--set run=3: write section.key=value"),
        ("", ["run.rounds"], "--set run.rounds: write section.key=value"),
        ("x", [], "is not TOML: "),
    ],
)
def test_errors_name_the_key_and_the_mend(text, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        configs.parse(text, "file.toml", overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_shipped_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give a TOML file, or one of .*demo"):
        configs.load(tmp_path / "none.toml")


def test_a_byte_order_mark_is_no_part_of_it(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[run]\nrounds = 3\n")
    assert configs.load(tmp_path / "x.toml").run.rounds == 3


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        configs.load(tmp_path / "x.toml")

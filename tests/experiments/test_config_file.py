import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import assembly, config_file, config_reference
from experiments.config import Config, DataConfig, ModelConfig
from models.presets import NAMES

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
        ("[run]\nrounds = '3'", [], 'run.rounds = "3": must be an integer, at least 1 and at most 1000000$'),
        ("[run]\nrounds = true", [], "run.rounds = true: must be an integer"),
        ("[privacy]\nclip_quantile = 1.5", [], "privacy.clip_quantile = 1.5: must be .*above 0 and below 1"),
        ("[privacy]\nclip_quantile = 1", [], "privacy.clip_quantile = 1.*: must be .*above 0 and below 1"),
        ("[data]\nstrict = 1", [], "data.strict = 1: must be true or false"),
        ("[data]\npublic = 'a'", [], 'data.public = "a": must be a list of strings'),
        ("[data]\npublic = ['a', 3]", [], r'data.public = \["a", 3\]: must be a list of strings, as in \["a", "b"\]$'),
        (
            "[data]\npublic = [[1], {a.b = 1}]",
            [],
            r"data.public = \[\[1\], { a = { b = 1 } }\]: must be a list of strings",
        ),
        ("[run]\nrounds = 2020-01-01", [], "run.rounds = 2020-01-01: must be an integer"),
        ("[run]\nrounds = 07:30:00", [], "run.rounds = 07:30:00: must be an integer"),
        (
            "[model]\npreset = {a = 1}",
            [],
            'model.preset = { a = 1 }: must be one of "cifg-18.8m", .*, "transformer-4m"$',
        ),
        ("[model]\npreset = {'a b' = true}", [], 'model.preset = { "a b" = true }: must be one of'),
        ("[model.preset]\na = 1", [], "model.preset = { a = 1 }: must be one of"),
        ("", ["model.preset=tinny"], 'model.preset = "tinny": must be one of .*; did you mean "tiny"\\?$'),
        ("", ["model.preset=huge"], 'model.preset = "huge": must be one of .*, "transformer-4m"$'),
        (
            "",
            ["model.cell=si-cfg"],
            r'model.cell = "si-cfg": must be one of "cifg", "si-cifg"; did you mean "si-cifg"\?$',
        ),
        ("", ["data.path=\udcff"], r"^--set data.path=\\udcff: not UTF-8 text$"),
        ("", ["privacy.clip_norm=true"], "privacy.clip_norm = true: must be a positive number"),
        ("", ["run.nosuch=none"], "unknown key run.nosuch; known are rounds"),
        ("", ["run.round=none"], r"unknown key run.round; did you mean rounds\?"),
        ("", ["run.users_at_once=none"], "run.users_at_once is now run.clients_at_once: rename the key"),
        ("", ["nosuch.key=none"], r"unknown section \[nosuch\]"),
        (f"[run]\nrounds = 1{'0' * 5000}", [], "config file.toml is not TOML: "),
        ("[data]\nmerge_ids = 'lower'", [], 'data.merge_ids = "lower": must be one of "normalize"'),
        ("[clients]\nlearning_rate = nan", [], "clients.learning_rate = nan: must be a positive number"),
        ("[clients]\nlearning_rate = -inf", [], "clients.learning_rate = -inf: must be a positive number"),
        (
            "[clients]\nlearning_rate = 1e39",
            [],
            "learning_rate = 1e.39: must be a positive number, 1e-37 to 1e.38",
        ),
        ("[privacy]\nclip_norm = 1e-50", [], "privacy.clip_norm = 1e-50: must be a positive number"),
        (f"[privacy]\nclip_norm = 1{'0' * 400}", [], "privacy.clip_norm = 10*: must be a positive number"),
        ("", ["run.rounds=3\nrun.x=1"], r'run.rounds = "3\\nrun.x=1": must be an integer'),
        (
            "[server]\noptimizer = 'adm'",
            [],
            r'server.optimizer = "adm": must be one of "adagrad", "adam", "momentum", "yogi"; did you mean "adam"\?$',
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


ONLY_FOR = [
    ("data.user_column", '"user"', 'data.source="folder"'),
    ("data.text_column", '"text"', 'data.source="folder"'),
    ("data.split", '"train"', 'data.source="csv"'),
    ("server.momentum", "0.9", 'server.optimizer="adam"'),
    ("server.epsilon", "0.1", 'server.optimizer="momentum"'),
    ("cohort.sampling_probability", "0.1", 'cohort.sampler="cyclic"'),
    ("cohort.size", "3", 'cohort.sampler="poisson"'),
    ("cohort.cohorts", "3", 'cohort.sampler="poisson"'),
    ("cohort.population", "30", 'cohort.sampler="fixed-size"'),
    ("cohort.min_separation", "3", 'cohort.sampler="cyclic"'),
    ("cohort.max_participations", "3", 'cohort.sampler="poisson"'),
    ("privacy.restart_every", "3", 'privacy.mechanism="blt"'),
    ("privacy.bands", "3", 'privacy.mechanism="blt"'),
    ("privacy.buffers", "3", 'privacy.mechanism="tree"'),
    ("privacy.optimize_for", '"optimizer"', 'privacy.mechanism="tree"'),
    ("privacy.horizon", "30", 'privacy.mechanism="gaussian"'),
    ("privacy.clip_learning_rate", "0.2", None),
    ("privacy.clip_count_stddev", "5.0", None),
    ("privacy.metrics_share", "0.1", None),
    ("privacy.loss_bound", "9.0", None),
]


@pytest.mark.parametrize(("key", "value", "kind"), ONLY_FOR)
def test_key_without_effect_is_refused(key, value, kind):
    with pytest.raises(ValueError, match=f"{key}( = {value} | )has no effect ") as caught:
        config_file.parse("", "x", [f"{key}={value}", *([kind] if kind else [])])
    assert kind is None or f'has no effect with {kind.partition("=")[2]}, only with "' in str(caught.value)


def test_every_key_that_names_its_kind_is_among_those_tested():
    """A description of such a key begins with the kinds that it is for, or with the key that it needs."""
    described = {
        f"{section}.{key}"
        for section, struct in config_file.sections().items()
        for key, field in config_file.fields(struct).items()
        if re.match(r"(`[\w-]+`(, )?)+: |With `", config_file.describe_field(field))
    }
    assert len(described) > 9 and described <= {key for key, *_ in ONLY_FOR}


PRIVATE = ["privacy.noise_multiplier=1", "privacy.clip_norm=1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy.clip_quantile=1.5"], "privacy.clip_quantile = 1.5: must be a finite number, above 0 and below 1"),
        (["cohort.size=-3"], "cohort.size = -3: must be an integer, at least 1"),
        (["cohort.cohorts=0"], "cohort.cohorts = 0: must be an integer, at least 1"),
        (["run.rounds=1000001"], "run.rounds = 1000001: must be an integer, at least 1 and at most 1000000"),
        (["run.rounds=99999999999999999999999"], "run.rounds = 9{23}: must be an integer"),
        (["data.split_seed=99999999999999999999999"], "data.split_seed = 9{23}: must be an integer"),
        (["data.min_tokens=99999999999999999999999"], "data.min_tokens = 9{23}: must be an integer, at least 2$"),
        (["data.validation=0.6", "data.test=0.4"], "data.validation = 0.6 and data.test = 0.4 leave no clients in"),
        (["cohort.sampler=fixed-size"], 'cohort.size is missing: cohort.sampler = "fixed-size" needs it'),
        (["cohort.sampler=cyclic"], 'cohort.cohorts is missing: cohort.sampler = "cyclic" needs it'),
        (["cohort.population=9"], "cohort.sampling_probability gives 0.9 clients per round on average: raise it"),
        ([*PRIVATE, "privacy.epsilon=2"], "privacy.epsilon and privacy.noise_multiplier are both set"),
        (
            [*PRIVATE, "privacy.noise_multiplier=1e-9"],
            "privacy.noise_multiplier = 1e-09: must be 0, for no privacy, or",
        ),
        (
            [*PRIVATE, "privacy.noise_multiplier=1e9"],
            "privacy.noise_multiplier = 1000000000.0: must be a finite number, at le",
        ),
        (
            [*PRIVATE, "privacy.metrics_share=1e-7"],
            "privacy.metrics_share = 1e-07: must be 0, for no metrics, or above",
        ),
        ([*PRIVATE, "privacy.loss_bound=1e-3"], "privacy.loss_bound = 0.001: must be a finite number, above 0.001 and"),
        (
            [*PRIVATE, "privacy.clip_quantile=0.5", "privacy.clip_count_stddev=0.5"],
            r"privacy.clip_count_stddev = 0.5 leaves none of .*noise_multiplier = 1.0\) .*: give more than 0.505",
        ),
        (["privacy.noise_multiplier=1"], "privacy.clip_norm is missing: without a clip norm"),
        (["privacy.epsilon=1"], "privacy.clip_norm is missing: without a clip norm"),
        (["privacy.clip_quantile=0.5"], "privacy.clip_quantile needs privacy.clip_norm"),
        (["privacy.noise=exact"], 'privacy.noise is "exact" in a run that adds none'),
        ([*PRIVATE, "privacy.noise=exact", "run.clients_at_once=8"], "run.clients_at_once = 8 with privacy.noise"),
        (["privacy.clip_norm=1", "server.weighting=examples"], 'server.weighting is "examples" with privacy'),
    ],
)
def test_mistake_is_found_when_config_is_read(overrides, message):
    with pytest.raises(ValueError, match=f"^config x: {message}") as caught:
        config_file.parse("", "x", overrides)
    assert "\n" not in str(caught.value)


def test_numbers_at_the_ends_of_their_ranges_are_accepted():
    """Whatever the config accepts, the plan does too."""
    for settings in (
        [*PRIVATE, "privacy.noise_multiplier=1e-6", "run.rounds=1000000"],
        [*PRIVATE, "privacy.noise_multiplier=1e8", "privacy.loss_bound=0.00101", "privacy.metrics_share=1.01e-6"],
        ["privacy.noise_multiplier=0", "cohort.sampler=fixed-size", "cohort.size=1"],
        [*PRIVATE, "privacy.clip_quantile=0.5", "privacy.clip_count_stddev=0.506", "cohort.population=10"],
    ):
        assembly.build_plan(config_file.parse("", "x", settings), 10, ())


def test_presets_are_those_of_the_models():
    wanted = config_file.describe_type(config_file.fields(ModelConfig)["preset"].type)
    assert wanted == f"one of {', '.join(sorted(map(json.dumps, NAMES)))}"
    for name in NAMES:
        assert config_file.parse("", "x", [f"model.preset={name}"]).model.preset == name


def test_schema_fits_editors_of_toml():
    """It names its version, shows each description at the top of its key, and offers no null, which TOML lacks."""
    schema = config_reference.schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "null" not in json.dumps(schema)
    keys = [key for name in config_file.sections() for key in section_schema(schema, name).values()]
    assert len(keys) > 50 and all("description" in key and ("type" in key or "enum" in key) for key in keys)
    assert section_schema(schema, "privacy")["epsilon"]["minimum"] == 1e-37
    assert section_schema(schema, "cohort")["size"]["minimum"] == 1
    assert section_schema(schema, "run")["rounds"]["maximum"] == 1_000_000
    assert set(section_schema(schema, "model")["preset"]["enum"]) == set(NAMES)


def section_schema(schema, name):
    reference = schema["$defs"]["Config"]["properties"][name]["$ref"]
    return schema["$defs"][reference.rpartition("/")[2]]["properties"]


def test_schema_describes_every_key_with_its_range():
    schema = config_reference.schema()
    section = schema["$defs"]["RunConfig"]["properties"]
    assert section["rounds"]["minimum"] == 1 and section["rounds"]["default"] == 20
    described = [definition for name, definition in schema["$defs"].items() if name != "Config"]
    for definition in described:
        assert definition["additionalProperties"] is False
        assert all("description" in str(key) for key in definition["properties"].values())


INIT = "model.init=runs/public"


@pytest.mark.parametrize(
    "setting",
    [
        "model.preset=tiny", "model.embedding=8", "model.cell=cifg", "model.units=8", "model.layer_norm=true",
        "model.output_bias=true", "model.blocks=1", "model.heads=1", "model.feed_forward=8", "model.context=8",
    ],
)  # fmt: skip
def test_key_of_the_model_beside_init_is_refused(setting):
    key = setting.partition("=")[0]
    with pytest.raises(ValueError, match=f"{key} has no effect with model.init, which names a whole model: remove a"):
        config_file.parse("", "file.toml", [INIT, setting])


def test_vocabulary_size_beside_init_is_refused_unless_it_is_the_default():
    with pytest.raises(
        ValueError, match="vocabulary.size = 300 has no effect with model.init, whose .*: remove the key"
    ):
        config_file.parse("", "file.toml", [INIT, "vocabulary.size=300"])
    config = config_file.parse("", "file.toml", [INIT, "model.seed=3"])
    assert (config.model.init, config.model.seed) == ("runs/public", 3)
    assert config_file.parse(config_file.dump(config), "dumped") == config

import pytest

from experiments.cli import main


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Returns a configuration file whose CSV holds three rows that stray quotes join."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "public.txt").write_text("to be or not to be\n" * 20)
    (tmp_path / "users.csv").write_text('user,text\nu0,to be\nu1,"or not\nu2,to be\nu3,that is"\n')
    (tmp_path / "config.toml").write_text(
        '[data]\nsource = "csv"\npath = "users.csv"\npublic = ["public.txt"]\n[vocabulary]\nsize = 260\n'
    )
    return str(tmp_path / "config.toml")


@pytest.mark.parametrize("command", ["data", "train"])
@pytest.mark.parametrize(
    ("option", "fix"), [(["--strict"], "drop --strict"), (["--set", "data.strict=true"], "set data.strict = false")]
)
def test_error_on_suspicious_row_names_the_option_that_was_typed(config, capsys, command, option, fix):
    with pytest.raises(SystemExit) as stop:
        main([command, config, *option])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fedspeak: error: users.csv:3: " if command == "data" else "fedspeak: error: ")
    assert "users.csv:3: a row with 2 line breaks" in error and error.endswith(f", or {fix}")

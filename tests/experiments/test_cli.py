import subprocess
import sys

import pytest

from experiments import cli


def test_every_command_loads_and_has_help(capsys):
    for name in cli._COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"Usage: fedspeak {name}")


@pytest.mark.parametrize("arguments", [[], ["privacy"], ["bench"], ["reproduce"]])
def test_command_group_without_command_shows_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"Usage: {' '.join(['fedspeak', *arguments])} [OPTIONS] COMMAND")


def test_unknown_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2 and "No such command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\nlines"), 2, "fedspeak: error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "fedspeak: error: x: No such file or directory\n"),
        (OSError(28, "No space left on device", "x"), 2, "fedspeak: error: x: No space left on device: free space on"),
        (
            OSError(30, "Read-only file system", "x"),
            2,
            "fedspeak: error: x: Read-only file system: give yourself access",
        ),
        (OSError(28, "No space left on device"), 2, "fedspeak: error: output: No space left on device: free space on"),
        (OSError(28, "x could not be written: fix"), 2, "fedspeak: error: x could not be written: fix\n"),
        (OSError("no name"), 2, "fedspeak: error: no name\n"),
        (
            ImportError("libfoo.so: cannot open", name="keras"),
            2,
            "fedspeak: error: keras is installed but broken (libfoo",
        ),
        (ModuleNotFoundError("install it"), 2, "fedspeak: error: install it\n"),
        (KeyboardInterrupt(), 130, "fedspeak: interrupted"),
    ],
)
def test_expected_errors_are_one_line_with_exit_code(error, code, message, capsys):
    def fail() -> None:
        raise error

    assert cli._run(fail) == code
    assert capsys.readouterr().err.startswith(message)


def test_unexpected_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli._run(lambda: 1 / 0)


def test_help_and_argument_errors_import_no_large_package():
    script = (
        "import sys; from experiments import cli\n"
        "for arguments in (['--help'], ['train', '--help'], ['train'], ['train', 'none'], ['privacy', '--help']):\n"
        "    try: cli.main(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'tensorflow', 'tensorflow_federated', 'keras', 'matplotlib', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

"""Option names of earlier versions are refused with the name that has replaced them."""

import click
import pytest
from click.testing import CliRunner

from experiments.cli import cli, main
from experiments.commands.renamed import renamed


@click.command()
@click.option("--clients", type=int, default=7)
@renamed("--users", "--clients")
def command(clients: int) -> None:
    click.echo(clients)


def test_renamed_option_is_refused_with_one_line_that_names_the_new_one():
    done = CliRunner().invoke(command, ["--users", "3"], standalone_mode=False)
    assert isinstance(done.exception, click.UsageError)
    assert done.exception.format_message() == "--users is now --clients"


def test_renamed_option_is_refused_before_other_mistakes_are_reported():
    done = CliRunner().invoke(command, ["--clients", "many", "--users", "3"])
    assert done.exit_code == 2 and "--users is now --clients" in done.output


def test_renamed_option_is_hidden_and_does_not_change_the_new_option():
    assert "--users" not in CliRunner().invoke(command, ["--help"]).output
    assert CliRunner().invoke(command, ["--clients", "3"]).output == "3\n"
    assert CliRunner().invoke(command, []).output == "7\n"


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        (["bench", "population"], "--users", "--clients"),
        (["bench", "population"], "--folder", "--output"),
        (["bench", "cohort"], "--most", "--max-clients"),
        (["bench", "cohort"], "--folder", "--output"),
        (["bench", "simulation"], "--out", "--output"),
        (["bench", "dp-step"], "--out", "--output"),
        (["bench", "exact-noise"], "--out", "--output"),
        (["bench", "kernels"], "--out", "--output"),
        (["generate", "model.tflite"], "--max-tokens", "--max-new-tokens"),
    ],
)
def test_old_option_names_are_refused_in_one_line(words, old, new, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, old, "100"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"fedspeak: error: {old} is now {new}\n"


def test_new_names_are_options_of_the_same_command():
    context = click.Context(cli)
    bench = cli.get_command(context, "bench")
    assert isinstance(bench, click.Group)
    names = {
        name: {option for parameter in bench.commands[name].params for option in parameter.opts}
        for name in ("population", "cohort")
    }
    assert {"--clients", "--output"} <= names["population"] and {"--max-clients", "--output"} <= names["cohort"]

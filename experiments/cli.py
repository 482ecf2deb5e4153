"""Defines the command line `fedspeak` and turns errors into one line and an exit code.

A command imports TensorFlow and other large packages only when it runs, so that help and argument errors are shown at
once.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from experiments import interrupt
from fl.runtime.kernels import prefer_onednn

# Maps each command to (its module, the name of its click command, its help line). The help line stands here so that
# `fedspeak --help` imports none of the modules.
_COMMANDS = {
    "demo": (
        "experiments.commands.demo",
        "demo",
        "Train, report, export and generate on Shakespeare's plays, into runs/demo.",
    ),
    "train": (
        "experiments.commands.runs",
        "train",
        "Train a model on clients' text: a TOML file, or --resume RUN.",
    ),
    "pretrain": (
        "experiments.commands.pretraining",
        "pretrain",
        "Train a model centrally on the public text of a config.",
    ),
    "import": (
        "experiments.commands.pretrained",
        "import_model",
        "Turn a pretrained model (GGUF, Hugging Face) into a model folder.",
    ),
    "ngram": (
        "experiments.commands.ngram",
        "ngram",
        "Learn an n-gram model for speculative or blockwise decoding from public text.",
    ),
    "evaluate": (
        "experiments.commands.runs",
        "evaluate",
        "Evaluate a trained run on its test clients, or any model on text files.",
    ),
    "report": ("experiments.commands.runs", "report", "Write the privacy report of a run from its ledger."),
    "export": (
        "experiments.commands.export",
        "export",
        "Write the trained model of a run as .tflite files, one per precision, and check them.",
    ),
    "generate": ("experiments.commands.generate", "generate", "Generate text from an exported model."),
    "costs": (
        "experiments.commands.costs",
        "costs",
        "Measure the times of drafts on this machine, for draft lengths that are chosen at run time.",
    ),
    "privacy": (
        "experiments.commands.privacy",
        "privacy",
        "Compute epsilon, the noise or the number of rounds from the other two; audit mechanisms.",
    ),
    "couple": (
        "experiments.commands.couple",
        "couple",
        "Compute how often two parties draw the same token from two distributions.",
    ),
    "fairness": (
        "experiments.commands.fairness",
        "fairness",
        "Test whether a model treats many intersecting groups alike, or plan how many rows that needs.",
    ),
    "data": ("experiments.commands.runs", "data", "Build the token store of a config and describe its contents."),
    "config": ("experiments.commands.config", "config", "Describe all keys of a configuration, for editors."),
    "worker": (
        "experiments.commands.workers",
        "worker",
        "Train clients for another host that runs fedspeak train --workers.",
    ),
    "certificates": (
        "experiments.commands.workers",
        "certificates",
        "Make the certificates with which a driver and its workers authenticate each other.",
    ),
    "reproduce": ("experiments.commands.reproduce", "reproduce", "Rerun a study and write its table and plot."),
    "bench": (
        "experiments.commands.bench",
        "bench",
        "Time fedspeak: beside other frameworks, and on large populations.",
    ),
    "doctor": ("experiments.commands.doctor", "doctor", "Check this machine for missing or mismatched software."),
}

# Maps each function that the library's messages name to the command that does the same.
_ON_COMMAND_LINE = {"fl.rounds.set_aside_metrics": "fedspeak train --resume with --set-aside-metrics"}


class _Commands(click.Group):
    """Defines a group of commands that imports a command's module when the command is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedspeak")
def cli() -> None:
    """Simulate private federated training of language models, account for privacy, export models, generate text."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits the process.

    The exit code is 0 on success, 2 on bad input or a failure that the user can fix (one line on standard error), and
    130 when interrupted. An error inside fedspeak keeps its traceback. With `FEDSPEAK_TRACEBACK=1` in the environment,
    the other errors keep theirs too.

    Args:
      arguments: the words after `fedspeak`; None: those of `sys.argv`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    prefer_onednn()
    interrupt.install()
    sys.exit(_run(lambda: cli.main(arguments, prog_name="fedspeak", standalone_mode=False)))


def _run(command: Callable[[], Any]) -> int:
    """Runs a command and returns its exit code; expected errors become one line on standard error."""
    try:
        command()
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        print(f"fedspeak: error: {_one_line(error.format_message())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort):
        print("fedspeak: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("FEDSPEAK_TRACEBACK"):
            raise
        print(f"fedspeak: error: {_one_line(_message(error))}", file=sys.stderr)
        return 2


def _message(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and str(error).startswith("No module named"):
        from experiments.extras import missing

        return missing(error.name)
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return f"{error.name or 'a package'} is installed but broken ({error}): reinstall it, or reinstall fedspeak"
    if isinstance(error, OSError) and error.strerror:
        from privacy.files import DENIED, FULL

        fix = ""
        if error.errno in DENIED:
            fix = ": give yourself access to it, or choose another"
        if error.errno in FULL:
            fix = ": free space on its disk"
        if error.filename:
            return f"{error.filename}: {error.strerror}{fix}"
        # Code that writes a file puts its name into the error. An operating system's bare message without a name
        # comes from standard output.
        return f"output: {error.strerror}{fix}" if error.strerror == os.strerror(error.errno or 0) else error.strerror
    text = str(error)
    for function, option in _ON_COMMAND_LINE.items():
        text = text.replace(function, option)
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())

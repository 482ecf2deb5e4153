"""Runs the commands of the docs that take long, at smoke scale: one after another, as a user would."""

import re
import shlex

import click
import pytest

from experiments.cli import cli
from privacy import Budget, Releases, dp_mean
from tests.experiments.processes import call, finish, start
from tests.models.pretrained.checkpoints import write_gguf
from tests.test_docs import PAGES, ROOT

# In order: later commands read what earlier ones wrote. `run` is a run on the made-up text of conftest.py.
STEPS = [
    "doctor",
    "config reference",
    "config schema",
    "privacy epsilon --population 1200 --cohort-size 72 --rounds 40 --noise-multiplier 1.1",
    "privacy noise --population 1200 --cohort-size 72 --rounds 40 --epsilon 4",
    "privacy noise --sampler check-in --population 1000000 --cohort-size 1000 --min-separation 100 "
    "--max-participations 5 --mechanism blt --rounds 500 --epsilon 4",
    "privacy rounds --population 1200 --cohort-size 72 --noise-multiplier 1.1 --epsilon 4",
    "data config.toml",
    "train config.toml --output run",
    "evaluate run",
    "import small.gguf --output small",
    "evaluate small --text public.txt",
    "export small --precision int8 --max-prompt 24 --max-new-tokens 24",
    "generate small/model-int8.tflite --chat 'the king' --max-new-tokens 8 --temperature 0",
    "pretrain config.toml --output public",
    "evaluate public --text public.txt",
    "ngram public.txt --vocabulary public --output ngram.npz",
    "ngram public.txt --vocabulary public --smoothing katz --order 4 --min-counts 1,2,4 --output katz.npz",
    "train config.toml --set model.init=small --set model.embedding=none --set model.units=none --set run.rounds=1 "
    "--set pretraining.epochs=0 --output tuned",
    "report run",
    "export run",
    "export run --precision int8 --output app.tflite",
    "export run --precision float32 --drafter lookup --decoding block --decoding autoregressive --draft-length auto:3 "
    "--output drafting.tflite",
    "costs drafting.tflite",
    "export run --precision float32 --drafter lookup --decoding spectr --decoding tree --draft-length 2 --num-drafts 3 "
    "--tree 3,1 --output trees.tflite",
    "export run --precision int8 --best-of 3 --output best.tflite",
    "generate best.tflite --prompt 'the king' --best-of 3 --reward length --count 2 --report best.json",
    "generate trees.tflite --prompt 'the king' --decoding tree --report trees.json",
    "generate drafting.tflite --prompt 'the king' --costs costs.json --report acceptance.json",
    "generate run/model.tflite --prompt 'the king' --temperature 0.8 --top-k 40 --seed 7 --count 3",
    "reproduce noise-seeds run --seeds 2",
    "train long --set run.rounds=1 --set vocabulary.size=300 --output long",
    "train production --set run.rounds=2 --set vocabulary.size=300 --output production",
    "privacy report ages.jsonl",
    "fairness plan --groups sex,race --table people.csv --alpha 0.8 --gap 0.2 --output plan.json",
    "fairness test people.csv --groups sex,race --outcome label --prediction predicted --alpha 0.8 --output fairness",
    "privacy audit --trials 20000",
    "privacy audit --training --epsilon 4 --delta 0.01",
    "certificates secrets",
    "reproduce dp-mean --trials 100 --library-trials 100",
    "reproduce dpsgd-f --data digits --seeds 3",
    "bench kernels --cell cifg",
    "bench population --clients 2000",
    "bench cohort --max-clients 100",
    "bench exact-noise --rounds 2 --clients 3",
    "bench verifiers --repetitions 3 --vocabulary 4096",
    "bench k-seq --repetitions 3 --vocabulary 8 --vocabulary 512",
    "bench decoding run --drafter lookup --mode block:2 --mode tree:2,1 --mode spectr:2x2 --mode distinct-tree:2,1 "
    "--mode multi-path:2x2 --prompts 2 --temperature 1",
    "bench samplers --peer fedspeak --texts 500 --timings 3",
    "bench dp-step --task linear --peer fedspeak --processes 1 --repetitions 1",
    "bench simulation --case logistic --peer stock-tff --peer fedspeak --rounds 3 --repetitions 1",
]
# Commands that a test of their own runs, and the file of that test.
ELSEWHERE = {
    "demo": "tests/experiments/commands/test_demo.py",
    "bench pretrained": "tests/experiments/bench/test_pretrained.py",
    "pretrain": "tests/experiments/commands/test_pretraining.py",
    "fairness federated": "tests/experiments/test_federated_fairness.py",
    "couple": "tests/experiments/commands/test_couple.py",
    "reproduce alignment": "tests/experiments/reproduce/test_alignment.py",
    "reproduce best-of-n": "tests/experiments/reproduce/test_best_of_n.py",
    "reproduce block-verification": "tests/experiments/reproduce/test_block_verification.py",
    "reproduce blockwise": "tests/experiments/reproduce/test_blockwise.py",
    "reproduce coupling": "tests/experiments/reproduce/test_coupling.py",
    "reproduce cvar-fairness": "tests/experiments/reproduce/test_cvar_fairness.py",
    "reproduce dp-ftrl": "tests/experiments/reproduce/test_dp_ftrl.py",
    "reproduce drafters": "tests/experiments/reproduce/test_drafters.py",
    "reproduce inference-time": "tests/experiments/reproduce/test_inference_time.py",
    "reproduce invariance": "tests/experiments/reproduce/test_invariance.py",
    "reproduce si": "tests/experiments/reproduce/test_si.py",
    "reproduce spectr": "tests/experiments/reproduce/test_spectr.py",
    "worker": "tests/experiments/commands/test_workers.py",
}


def leaf_commands() -> dict[str, click.Command]:
    """Maps each command, as in "privacy epsilon", to click's object."""
    leaves: dict[str, click.Command] = {}
    groups: list[tuple[str, click.Group]] = [("", cli)]
    while groups:
        prefix, group = groups.pop()
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                groups.append((f"{prefix}{name} ", command))
            elif command is not None:
                leaves[f"{prefix}{name}"] = command
    return leaves


def test_every_command_of_the_docs_has_a_run_at_smoke_scale():
    text = "\n".join(page.read_text() for page in PAGES)
    documented = {name for name in leaf_commands() if re.search(rf"\bfedspeak {name}\b", text)}
    assert len(documented) > 20
    run = {name for name in documented if any(step == name or step.startswith(f"{name} ") for step in STEPS)}
    assert documented == run | ELSEWHERE.keys(), "add a line to STEPS"
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (ROOT / file).read_text(), f"{file} does not run {name}"


@pytest.fixture(scope="module")
def user_folder(folder):
    """The folder of `conftest.py` with the ledger of a private statistic, a pretrained model and a table of people."""
    write_gguf(folder / "small.gguf")
    people = [f"{sex},{race},{i % 2},{i % 3 % 2}" for sex in "fm" for race in "abc" for i in range(20)]
    (folder / "people.csv").write_text("\n".join(["sex,race,label,predicted", *people]))
    with Releases.open(folder / "ages.jsonl", Budget(epsilon=1.0)) as ledger:
        dp_mean([34, 71, 25, 48, 52], lower=0, upper=100, epsilon=0.5, ledger=ledger)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_long_command_of_the_docs_runs_at_smoke_scale(user_folder, step):
    if step.startswith("bench kernels"):  # it limits TensorFlow's threads, which a process can do only once
        code, out, err = finish(start(*shlex.split(step), folder=user_folder))
    else:
        code, out, err = call(*shlex.split(step), folder=user_folder)
    assert code == 0, err
    assert out.strip(), "nothing was printed"

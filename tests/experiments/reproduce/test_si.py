"""The study of scale invariance chooses, compares and concludes as arithmetic says, and goes on where it was."""

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import config_file
from experiments.display import ConsoleDisplay
from experiments.reproduce import si, si_analysis, si_arms, si_choice, si_gradients, si_models, si_tables
from experiments.reproduce.si_arms import MOMENTUM, PUBLIC, SCALES, Cell
from experiments.reproduce.si_choice import MissingError, Rows
from tests.experiments.processes import call

COMMAND = "reproduce", "si"  # "reproduce si"
SMALL = SCALES["small"]
CONFIG = config_file.load("si")
ARMS = {arm.name: arm for arm in si_arms.arms(CONFIG, SMALL)}
ROUNDS = 40
STUDENT = 4.302653  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a table


def row_of(cell, rounds, loss, test=None, diverged=False):
    """A row whose validation loss falls on a line from 6 to `loss` over all rounds."""
    done = [each for each in (5, 10, 20, 25, 30, 35, 40) if each <= rounds]
    curve = [None if diverged else 6 + (loss - 6) * each / ROUNDS for each in done]
    return {
        **cell._asdict(),
        "rounds": rounds,
        "diverged": diverged,
        "curve": {"rounds": done, "loss": curve, "accuracy": [0.1] * len(done)},
        "test": {"loss": loss if test is None else test, "accuracy": 0.2} if rounds == ROUNDS else None,
        "parameters": 221_952,
        "moved": {"embedding": 0.1, "others": 0.2},
        "within_clip": 0.5 if ARMS[cell.arm].is_private else None,
        "clip": None,
        "seconds": 2.0 * rounds,
        "processor_seconds": 3.0 * rounds,
    }


def key(row):
    return tuple(row[name] for name in Cell._fields)


class FakeTrainer:
    """Answers at once; `loss` is a function of the cell."""

    def __init__(self, loss, limit=10**6):
        self.loss, self.limit, self.trained = loss, limit, []

    def __call__(self, arm, cell, rounds, is_final):
        assert arm.name == cell.arm and is_final == (rounds == ROUNDS and cell.seed > 0)
        if len(self.trained) == self.limit:
            raise KeyboardInterrupt
        self.trained.append((cell, rounds))
        return row_of(cell, rounds, self.loss(cell))

    def forget(self):
        pass

    def recycle(self):
        pass


def loss_of(cell):
    """Lower for the scale-invariant models by 0.25, and best at rates 0.3 and 0.1 (0.003 for Adam on the server)."""
    distance = abs(math.log(cell.client_rate / 0.3)) + abs(math.log(cell.server_rate / 0.1))
    gain = 0.25 if cell.model.startswith("si-") else 0.0
    return 5.0 + 0.1 * distance - gain + 0.01 * cell.seed + 0.05 * abs(math.log(cell.scale))


def train(tmp_path, trainer, found=None, arms=tuple(ARMS)):
    found = {"rows": []} if found is None else found
    study = si.Training(
        CONFIG, SMALL, [ARMS[name] for name in arms], None, found, tmp_path / "m.json", ConsoleDisplay(), None
    )
    study.run(trainer)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = FakeTrainer(loss_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(si, "write_json", lambda path, content: None)  # hundreds of times
        found = train(tmp_path_factory.mktemp("si"), trainer)
    found |= {
        "scale": "small",
        "config": si._identity(CONFIG),
        "vocabulary": 512,
        "unigram": 5.5,
        "guarantees": {},
        "gradients": {},
        "kernels": ["oneDNN on"],
    }
    found["clients"] = {"train": 988, "validation": 118, "test": 134}
    return found, trainer


def test_models_have_equal_numbers_of_weights():
    # 512 tokens of 96 entries; a cell of 256 units: 3 (2·96 + 1)·256 + 256·96
    expected = 512 * 96 + 3 * 193 * 256 + 256 * 96
    assert expected == 221_952
    from experiments import assembly

    for name in si_models.MODELS:
        config = si_arms.configure(CONFIG, SMALL, ARMS[MOMENTUM], Cell(MOMENTUM, name, 1.0, 1.0))
        model = assembly.build_model(config, 512)
        assert sum(math.prod(shape) for shape in model.shapes().values()) == expected, name


def test_initial_weights_have_the_factors_of_the_model_and_of_the_cell():
    from models.presets import preset

    model = preset("tiny", 300, embedding=8, units=4)
    changed = si_models.Model("si-cifg", embedding=3.0, others=2.0)
    plain, scaled = model.init(3), si_models.initial_weights(changed, model, 3, 5.0)
    for name, weight in plain.items():
        np.testing.assert_array_equal(
            scaled[name], weight * np.float32({"embedding": 3, "projection": 1}.get(name, 10))
        )


def test_gradients_of_initial_weights_are_those_of_finite_differences():
    text = "[vocabulary]\nsize = 300\n[model]\nembedding = 8\nunits = 8\n[clients]\nsequence_length = 4"
    config, rows = config_file.parse(text, "x"), np.random.default_rng(0).integers(1, 300, (5, 5), np.int32)
    prepared: Any = SimpleNamespace(
        splits=SimpleNamespace(validation=["a"]),
        vocabulary=SimpleNamespace(size=300),
        whole=lambda client: rows,
    )
    found = si_gradients.initial_gradients(config, SCALES["smoke"], prepared)
    assert found.keys() == si_models.STANDARD.keys() and "projection" not in found["transformer"]
    from models.presets import preset

    model = preset("tiny", 300, cell="cifg", embedding=8, units=8)
    weights = {name: value.astype(np.float64) for name, value in model.init(0).items()}
    squares, step = 0.0, 1e-5
    for place in np.ndindex(weights["projection"].shape):
        sides = []
        for sign in (1, -1):
            moved = weights["projection"].copy()
            moved[place] += sign * step
            sides.append(float(np.mean(model.token_losses({**weights, "projection": moved}, rows[:4]))))
        squares += ((sides[0] - sides[1]) / (2 * step)) ** 2
    expected = math.sqrt(squares) / np.linalg.norm(weights["projection"])
    assert found["cifg"]["projection"] == pytest.approx(expected, rel=1e-3)


def test_every_arm_trains_each_model_as_it_says():
    private = si_arms.configure(CONFIG, SMALL, ARMS["z = 2, adaptive clip"], Cell("", "cifg", 0.3, 0.1, seed=2))
    assert (private.privacy.noise_multiplier, private.privacy.clip_quantile, private.run.fixed_key) == (2.0, 0.5, 2)
    assert private.cohort.sampling_probability == pytest.approx(4 * 0.06) and private.clients.max_sequences == 16
    proximal = si_arms.configure(CONFIG, SMALL, ARMS["proximal"], Cell("", "si-cifg", 0.3, 0.1))
    assert (proximal.clients.proximal, proximal.clients.learning_rate, proximal.server.learning_rate) == (0.1, 0.3, 0.1)
    assert proximal.privacy.clip_norm is None and proximal.clients.max_sequences == 32
    assert si_arms.configure(CONFIG, SMALL, ARMS["adam"], Cell("", "cifg", 0.3, 0.1)).server.optimizer == "adam"
    own = si_arms.change(CONFIG, {"clients.optimizer": "adam", "clients.proximal": 1.0})
    plain = si_arms.configure(own, SMALL, ARMS[MOMENTUM], Cell("", "cifg", 0.3, 0.1))
    assert (plain.clients.optimizer, plain.clients.proximal, plain.privacy.is_private) == ("sgd", 0.0, False)
    decayed = si_arms.configure(CONFIG, SMALL, ARMS["variants"], Cell("", "si-cifg, weight decay", 0.3, 0.1))
    assert decayed.clients.weight_decay == 0.01
    assert ROUNDS == CONFIG.run.rounds and ARMS[PUBLIC].models == ("cifg", "si-cifg")


def test_halving_trains_thirds_and_finds_the_best(tmp_path):
    candidates = [Cell(MOMENTUM, "cifg", client, server) for server in (0.1, 0.3, 1.0) for client in range(1, 6)]
    trained, losses = [], np.random.default_rng(0).permutation(15)

    def train(cell, rounds):
        trained.append(rounds)
        return row_of(cell, rounds, float(losses[candidates.index(cell)]))

    assert candidates.index(si_choice.halve(candidates, ROUNDS, train)[0]) == losses.argmin()
    # An eighth, a quarter and a half of 40 rounds, by 15, 5 and 2 candidates.
    assert trained == [5] * 15 + [10] * 5 + [20] * 2
    assert si_choice.rounds_of_halving(15, ROUNDS) == 15 * 5 + 5 * 5 + 2 * 10
    assert si_choice.rounds_of_halving(5, ROUNDS) == 5 * 5 + 2 * 5 and si_choice.rounds_of_halving(1, ROUNDS) == 0


def test_a_candidate_that_diverged_is_never_chosen():
    candidates = [Cell(MOMENTUM, "cifg", rate, 0.1) for rate in (0.1, 0.3, 1.0)]
    rows = Rows([row_of(cell, 5, 1.0 + i, diverged=i < 2) for i, cell in enumerate(candidates)])
    assert si_choice.halve(candidates, ROUNDS, rows)[0] == candidates[2]


def test_rates_that_fail_with_a_seed_are_passed_over(tmp_path):
    """The two best rates diverge with seed 3, or end above their first loss; the third best are chosen."""

    class Failing(FakeTrainer):
        def __call__(self, arm, cell, rounds, is_final):
            row = super().__call__(arm, cell, rounds, is_final)
            if (cell.client_rate, cell.seed) == (0.003, 2):
                return {**row, "diverged": True}
            if (cell.client_rate, cell.seed) == (0.001, 3) and is_final:
                return {**row, "curve": {**row["curve"], "loss": [*row["curve"]["loss"][:-1], 7.0]}}
            return row

    trainer = Failing(lambda cell: 5.0 + abs(math.log(cell.client_rate / 0.0025)) / 9 + cell.server_rate)
    found = {**train(tmp_path, trainer, arms=("client adam",)), "scale": "small", "config": si._identity(CONFIG)}
    study = si_tables.read({**found, "vocabulary": 512})
    assert study.chosen("client adam", "cifg") == Cell("client adam", "cifg", 0.01, 0.1)
    assert [cell.client_rate for cell in study.passed_over("client adam", "cifg")] == [0.003, 0.001]
    # 15 candidates, 2 seeds of the best, 3 of the next and 3 of the chosen
    assert len(found["rows"]) == 15 + 2 + 3 + 3
    assert si_choice.trains({"diverged": False, "curve": {"loss": [None, 5.0]}})
    assert not si_choice.trains({"diverged": False, "curve": {"loss": [5.0, None]}})


def test_all_cells_are_trained_once_and_counted(trained):
    found, trainer = trained
    counted = si_choice.count_all(ARMS.values(), SMALL, ROUNDS)
    assert counted == (len(found["rows"]), sum(row["rounds"] for row in found["rows"]))
    assert len({key(row) for row in found["rows"]}) == len(found["rows"])
    assert si_choice.time_left(list(ARMS.values()), SMALL, ROUNDS, found["rows"]) == 0


def test_time_left_is_that_of_the_missing_rounds():
    arm = ARMS["client adam"]  # one model: 15 candidates and 3 seeds, 120 + 3 · 40 rounds
    rows = [row_of(Cell("client adam", "cifg", 0.001, 0.1), 20, 5.0)]
    assert si_choice.time_left([arm], SMALL, ROUNDS, rows) == pytest.approx((120 + 120 - 20) * 2.0)
    assert si_choice.time_left([arm], SMALL, ROUNDS, []) is None


def test_choices_are_the_best_rates_and_fedprox_takes_the_server_rate_of_fedavg(trained):
    study = si_tables.read(trained[0])
    for arm, server in ((MOMENTUM, 0.1), ("proximal", 0.1), ("z = 1, fixed clip", 0.3), ("adam", 0.03)):
        assert study.chosen(arm, "si-transformer") == Cell(arm, "si-transformer", 0.3, server)
    assert study.chosen("variants", "cifg, layer norm").server_rate == 0.1


def test_an_interrupted_study_trains_only_what_is_missing(tmp_path, trained):
    arms = "client adam", MOMENTUM
    first = FakeTrainer(loss_of, limit=30)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, first, arms=arms)
    kept = json.loads((tmp_path / "m.json").read_text())
    again = FakeTrainer(loss_of)
    found = train(tmp_path, again, kept, arms=arms)
    whole = [(cell, rounds) for cell, rounds in trained[1].trained if cell.arm in arms]
    assert sorted(first.trained + again.trained) == sorted(whole)
    assert {key(row): row for row in found["rows"]} == {
        key(row): row for row in trained[0]["rows"] if row["arm"] in arms
    }


def test_intervals_are_students_and_paired_by_seed():
    # Differences -0.3, -0.2, -0.1: mean -0.2, standard deviation 0.1.
    found = si_analysis.compare([5.0, 6.0, 7.0], [4.7, 5.8, 6.9])
    assert found.difference["mean"] == pytest.approx(-0.2)
    assert found.difference["half"] == pytest.approx(STUDENT * 0.1 / math.sqrt(3), rel=1e-6)
    assert si_analysis.verdict(found) == "undecided"
    assert si_analysis.verdict(si_analysis.compare([5.0, 6.0, 7.0], [4.0, 5.1, 6.0])) == "holds"
    assert si_analysis.verdict(si_analysis.compare([4.0, 5.1, 6.0], [5.0, 6.0, 7.0])) == "the opposite holds"
    assert si_analysis.verdict(None) == "not measured yet"


def test_rounds_to_a_loss_lie_on_the_line_between_evaluations():
    row = {"curve": {"rounds": [5, 10, 20], "loss": [6.0, 5.0, 4.0]}}
    assert si_analysis.rounds_to(row, 5.5) == pytest.approx(7.5)
    assert si_analysis.rounds_to(row, 4.25) == pytest.approx(17.5)
    assert si_analysis.rounds_to(row, 7.0) == 5 and si_analysis.rounds_to(row, 3.9) is None
    assert si_analysis.rounds_to({"curve": {"rounds": [5, 10], "loss": [None, 5.0]}}, 5.0) == 10


def test_comparisons_of_planted_results(trained):
    study = si_tables.read(trained[0])
    found = {name: each for name, each in si_analysis.comparisons(study).items() if each is not None}
    for name in (MOMENTUM, "adam", "proximal", "z = 2, adaptive clip", "rates"):
        for standard in si_models.PAIRS:
            # "rates" is the loss after half of the rounds, where half of the difference is reached.
            expected = -0.125 if name == "rates" else -0.25
            assert found[name, standard].difference["mean"] == pytest.approx(expected), name
            assert si_analysis.verdict(found[name, standard]) == "holds"
    # The weights' scale raises both losses alike.
    assert found["scale 10", "cifg"].difference["mean"] == pytest.approx(0.0, abs=1e-9)
    # With seed s the standard model ends at 5 + s/100, and the other is there after 40 (1 - s/100) / (1.25 - s/100).
    speeds = [40 * (1 - s / 100) / (1.25 - s / 100) - 40 for s in (1, 2, 3)]
    assert found["rounds", "cifg"].difference["mean"] == pytest.approx(np.mean(speeds), rel=1e-6)
    assert si_analysis.choose_cell(study) == "si-cifg"
    # After half the rounds a rate of 0.03 or 3 is worse than 0.3 by 0.1 · ln(10) / 2 = 0.12.
    assert si_analysis.near_rates(study, "cifg") == 5


def test_losses_above_a_uniform_guess_or_not_finite_count_as_one(trained):
    study = si_tables.read(trained[0])
    assert study.limit(None) == study.limit(50.0) == math.log(512)
    assert study.limit(4.0) == 4.0


def test_tables_say_what_is_not_measured_yet(trained):
    found = {**trained[0], "rows": []}
    table = si_tables.format_tables(found)
    assert "holds" not in table and "| not measured yet | not measured yet |" in table
    study = si_tables.read(found)
    assert (
        set(si_analysis.comparisons(study).values()) == {None} and si_analysis.choose_cell(study) == "not measured yet"
    )
    with pytest.raises(MissingError):
        study.final(MOMENTUM, "cifg")


def test_tables_follow_the_results_and_notice_a_swap(trained):
    table = si_tables.format_tables(trained[0])
    assert "| better: loss of FedAvg, server momentum | holds: -0.250 [-0.250, -0.250] |" in table
    assert "not measured yet" not in table
    swap = {a: b for pair in si_models.PAIRS.items() for a, b in (pair, pair[::-1])}
    rows = [{**row, "model": swap.get(row["model"], row["model"])} for row in trained[0]["rows"]]
    assert "| better: loss of FedAvg, server momentum | the opposite holds: +0.250" in si_tables.format_tables(
        {**trained[0], "rows": rows}
    )


def test_results_are_of_the_keys_that_are_set_wherever_the_data_stands():
    text = '[data]\nsource = "jsonl"\npath = "{}"\npublic = ["{}"]\nmin_tokens = 5\n[run]\nrounds = 20\n'
    one, other = (config_file.parse(text.format(*paths), "x") for paths in (("/a", "/b"), ("/c", "/d")))
    assert si._identity(one) == si._identity(other) == '[data]\nsource = "jsonl"\nmin_tokens = 5\n'  # 20 is the default
    assert si._identity(config_file.parse("[run]\nrounds = 21", "x")) == "[run]\nrounds = 21\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[cohort]\nsampler = 'fixed-size'\nsize = 5", 'cohort.sampler = "fixed-size": the study draws Poisson'),
        ("[model]\npreset = 'transformer-4m'", "model.preset = 'transformer-4m': the study builds its own"),
        ("[model]\nlayer_norm = true", "model.layer_norm has no effect"),
        (
            "[model]\nembedding = 64\nunits = 8",
            "model.units = 8 with model.embedding = 64: a transformer of 1 block and",
        ),
        ("[modell]\nunits = 8", "unknown section"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(tmp_path, settings, message):
    (tmp_path / "own.toml").write_text(settings)
    code, out, err = call(*COMMAND, "--config", "own.toml", folder=tmp_path)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not out and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_smoke_scale_runs_stops_and_goes_on(folder):
    options = "--config", "config.toml", "--output", "si"
    code, out, err = call(*COMMAND, *options, "--minutes", "0.05", folder=folder)
    assert code == 0 and "the same command goes on from here" in err and "not measured yet" in out, err
    begun = json.loads((folder / "si" / "metrics.json").read_text())
    assert begun["rows"]
    code, out, err = call(*COMMAND, *options, folder=folder)
    assert code == 0 and "not measured yet" not in out.partition("### Cost")[0], err
    found = json.loads((folder / "si" / "metrics.json").read_text())
    assert all(row in found["rows"] for row in begun["rows"] if row["test"])
    assert all((folder / "si" / f"{name}.svg").exists() for name in ("curves", "rates", "privacy"))
    arms = si_arms.arms(config_file.load(str(folder / "config.toml")), SCALES["smoke"])
    rounds = config_file.load(str(folder / "config.toml")).run.rounds
    assert len(found["rows"]) == si_choice.count_all(arms, SCALES["smoke"], rounds)[0]
    # A finished study trains nothing, from the results file alone too.
    code, again, err = call(
        *COMMAND, *options[:2], "--resume", "si/metrics.json", "--output", "copy", "--minutes", "0", folder=folder
    )
    assert code == 0 and again == out and "loading TensorFlow Federated" not in err, err
    code, _, err = call(*COMMAND, "--scale", "small", *options, folder=folder)
    assert code == 2 and "holds results of another scale" in err

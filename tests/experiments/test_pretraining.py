import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import PretrainingConfig
from experiments.pretraining import initial_weights, learning_rate_factor, pretrain
from fl import checkpoints
from fl.evaluation import Evaluator
from models.recurrent_lm import RecurrentLanguageModel
from tests.tolerance import FUNCTION, condition, rounding

MODEL = RecurrentLanguageModel("si-cifg", 12, 6, 9)


def sequences() -> np.ndarray:
    """Returns sequences that run through the tokens 1 to 11 in a cycle, from random starts."""
    generator = np.random.default_rng(0)
    start = generator.integers(0, 11, (200, 1))
    return ((start + np.arange(9)) % 11 + 1).astype(np.int32)


def test_pretraining_learns_returns_best_epoch_and_is_repeatable():
    seen = []
    config = PretrainingConfig(epochs=6, learning_rate=0.02, batch_size=10)
    weights = pretrain(
        MODEL, sequences(), config, MODEL.init(3), 3, lambda step, _, loss: seen.append((step // 19, loss))
    )
    evaluate = Evaluator(MODEL, [sequences()[::20]])
    assert [epoch for epoch, _ in seen] == list(range(1, len(seen) + 1))
    assert evaluate(weights).loss_per_token == pytest.approx(min(loss for _, loss in seen), rel=1e-6)
    assert min(loss for _, loss in seen) < 0.5 < evaluate(MODEL.init(3)).loss_per_token
    again = pretrain(MODEL, sequences(), config, MODEL.init(3), 3)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_pretraining_without_epochs_returns_initial_weights():
    weights = pretrain(MODEL, sequences(), PretrainingConfig(epochs=0), MODEL.init(3), 3)
    assert all(np.array_equal(weights[name], value) for name, value in MODEL.init(3).items())


def test_output_bias_starts_at_public_log_frequencies():
    model = RecurrentLanguageModel("si-cifg", 12, 6, 9, output_bias=True)
    rows = np.array([[1, 2, 2, 0], [3, 2, 5, 0]], np.int32)
    bias = initial_weights(model, rows, 3)["output_bias"]
    counts = np.full(12, 0.5)
    for token in (2, 2, 2, 5):
        counts[token] += 1
    np.testing.assert_allclose(bias, np.log(counts / counts.sum()), rtol=1e-6)


def trained(config: PretrainingConfig, rows: np.ndarray | None = None, **options) -> dict[str, np.ndarray]:
    return pretrain(MODEL, sequences() if rows is None else rows, config, MODEL.init(3), 3, **options)


def assert_equal(weights: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name])


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def steady() -> tuple[PretrainingConfig, dict[str, np.ndarray], list[tuple[int, float]]]:
    """Returns a config with warm-up, cosine, parts and evaluations within an epoch, its weights and its losses."""
    config = PretrainingConfig(
        epochs=3, learning_rate=0.02, batch_size=10, accumulate=3, evaluate_every=8, warmup_steps=5, schedule="cosine"
    )
    losses: list[tuple[int, float]] = []
    weights = trained(config, on_evaluation=lambda step, steps, loss: losses.append((step, loss)))
    return config, weights, losses


def test_evaluations_are_every_so_many_steps_and_after_the_last(steady):
    """190 sequences in batches of 10 make 19 steps an epoch, 57 in all."""
    assert [step for step, _ in steady[2]] == [8, 16, 24, 32, 40, 48, 56, 57]


@pytest.mark.parametrize("stops", [(8, 40), (57,)])
def test_interrupted_and_resumed_training_gives_the_same_weights_bit_for_bit(steady, tmp_path, stops):
    config, weights, losses = steady
    seen: list[tuple[int, float]] = []

    def stop_at(last: int | None):
        def on_evaluation(step: int, steps: int, loss: float) -> None:
            seen.append((step, loss))
            if step == last:
                raise Interrupted

        return on_evaluation

    for stop in stops:
        with pytest.raises(Interrupted):
            trained(config, folder=tmp_path, on_evaluation=stop_at(stop))
        assert [path.name for path in tmp_path.iterdir()] == [f"round-{stop:06d}.ckpt"]
    assert_equal(trained(config, folder=tmp_path, on_evaluation=stop_at(None)), weights)
    assert seen == losses


def test_interruption_between_evaluations_repeats_the_steps_after_the_checkpoint(steady, tmp_path):
    config, weights, losses = steady
    seen, begun = [], []

    def on_step(step: int, steps: int) -> None:
        assert steps == 57
        begun.append(step)
        if step == 21 and begun.count(21) == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(config, folder=tmp_path, on_step=on_step)
    found = trained(
        config, folder=tmp_path, on_step=on_step, on_evaluation=lambda step, steps, loss: seen.append((step, loss))
    )
    assert_equal(found, weights)
    assert begun == [*range(1, 22), *range(17, 58)] and seen == losses[2:]


def test_early_stop_counts_evaluations_from_before_the_interruption(tmp_path):
    noise = np.random.default_rng(1).integers(1, 12, (100, 9)).astype(np.int32)
    config = PretrainingConfig(epochs=50, learning_rate=0.05, batch_size=10, patience=3)
    losses: list[float] = []
    weights = trained(config, noise, on_evaluation=lambda step, steps, loss: losses.append(loss))
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 50

    def stop(step: int, steps: int, loss: float) -> None:
        if loss == losses[best + 1]:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(config, noise, folder=tmp_path, on_evaluation=stop)
    after: list[float] = []
    resumed = trained(config, noise, folder=tmp_path, on_evaluation=lambda step, steps, loss: after.append(loss))
    assert_equal(resumed, weights)
    assert after == losses[best + 2 :]


@pytest.mark.parametrize("patience", [1, 2])
def test_pretraining_stops_after_patience_evaluations_without_lower_loss(patience):
    noise = np.random.default_rng(1).integers(1, 12, (100, 9)).astype(np.int32)
    seen: list[float] = []
    config = PretrainingConfig(epochs=50, learning_rate=0.05, batch_size=10, patience=patience)
    weights = trained(config, noise, on_evaluation=lambda step, steps, loss: seen.append(loss))
    running = np.minimum.accumulate([math.inf, *seen])
    without_gain = [loss >= best for loss, best in zip(seen, running, strict=False)]
    assert all(without_gain[-patience:])
    assert not any(all(without_gain[i : i + patience]) for i in range(len(seen) - patience))
    found = Evaluator(MODEL, [noise[::20]])(weights).loss_per_token
    assert found == pytest.approx(min(seen), rel=1e-6)


@pytest.mark.numerical
def test_accumulation_changes_the_weights_by_rounding_only():
    """Ten steps of Adam; 19 batches would be an epoch. The parts of 10 sequences have 4, 3 and 3."""
    rows = sequences()[:110]
    names, initial = list(MODEL.init(3)), MODEL.init(3)

    def after(accumulate: int, weights: dict) -> dict[str, np.ndarray]:
        config = PretrainingConfig(
            epochs=1, learning_rate=0.001, batch_size=10, accumulate=accumulate, patience=1, evaluate_every=10
        )
        return pretrain(MODEL, rows, config, weights, 3)

    factor = condition(lambda weights: list(after(1, weights).values()), initial)
    # Of a step: sums over inputs, units, vocabulary and 80 targets, and functions in each of 8 steps of the cell, three
    # times (forward once, backward twice); Adam's root and quotients.
    operations = 10 * (3 * (6 + 9 + 12 + 8 * (9 + 4 * FUNCTION)) + 80 + 2 * FUNCTION)
    whole = after(1, initial)
    assert any(np.abs(whole[name] - initial[name]).max() > 0.005 for name in names)
    for accumulate in (3, 10):
        parts = after(accumulate, initial)
        for name in names:
            np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=rounding(operations, factor))


@given(st.integers(0, 50), st.integers(1, 200), st.sampled_from(["constant", "cosine"]))
def test_learning_rate_rises_linearly_then_follows_the_schedule(warmup, after, schedule):
    steps = warmup + after
    config = PretrainingConfig(epochs=1, warmup_steps=warmup, schedule=schedule)
    factors = [learning_rate_factor(step, steps, config) for step in range(steps)]
    np.testing.assert_allclose(factors[:warmup], np.arange(1, warmup + 1) / max(warmup, 1))
    angle = np.arange(after) * (math.pi / after)
    np.testing.assert_allclose(factors[warmup:], np.cos(angle / 2) ** 2 if schedule == "cosine" else np.ones(after))


@pytest.mark.parametrize(
    ("schedule", "step", "factor"), [("cosine", 4, 1.0), ("cosine", 12, 0.5), ("constant", 12, 1.0)]
)
def test_schedule_begins_after_the_warmup_and_is_half_way_down_in_its_middle(schedule, step, factor):
    config = PretrainingConfig(epochs=1, warmup_steps=4, schedule=schedule)
    assert learning_rate_factor(step, 20, config) == pytest.approx(factor, rel=1e-12)


def test_warmup_longer_than_the_training_never_reaches_the_full_rate():
    config = PretrainingConfig(epochs=1, warmup_steps=10, schedule="cosine")
    assert [learning_rate_factor(step, 3, config) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_first_step_of_adam_moves_each_weight_by_the_warmed_up_rate():
    """Adam's first step is the rate times the gradient's sign, where the gradient is far above epsilon."""
    config = PretrainingConfig(epochs=1, batch_size=100, learning_rate=0.01, warmup_steps=4)
    moved = trained(config, sequences()[:110])
    largest = max(np.abs(moved[name] - value).max() for name, value in MODEL.init(3).items())
    assert largest == pytest.approx(0.01 / 4, rel=1e-3)


def test_given_weights_are_kept_if_no_evaluation_has_a_lower_loss():
    config = PretrainingConfig(epochs=8, learning_rate=0.02, batch_size=10)
    good = trained(config)
    harmful = PretrainingConfig(epochs=9, learning_rate=5.0, batch_size=10, patience=1)
    seen: list[int] = []
    kept = pretrain(MODEL, sequences(), harmful, good, 3, lambda step, steps, loss: seen.append(step))
    assert_equal(kept, good)
    assert seen == [19]


def test_loss_that_is_not_finite_is_refused_with_the_fix():
    config = PretrainingConfig(epochs=2, learning_rate=1e38, batch_size=10)
    with pytest.raises(ValueError, match=r"pretraining.learning_rate = 1e\+38: after 19 steps .* not finite: lower it"):
        trained(config)


def test_initial_weights_that_are_not_finite_are_refused():
    lost = {name: np.full_like(value, np.nan) for name, value in MODEL.init(3).items()}
    with pytest.raises(ValueError, match="initial weights' loss on the held-out public text is not finite"):
        pretrain(MODEL, sequences(), PretrainingConfig(epochs=1), lost, 3)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    config = PretrainingConfig(epochs=1, batch_size=10)
    trained(config, folder=tmp_path)
    other = RecurrentLanguageModel("si-cifg", 12, 6, 10)
    with pytest.raises(ValueError, match="does not fit this run"):
        pretrain(other, sequences(), config, other.init(3), 3, folder=tmp_path)


def test_damaged_checkpoint_is_refused(tmp_path):
    config = PretrainingConfig(epochs=1, batch_size=10)
    trained(config, folder=tmp_path)
    (path,) = checkpoints.list_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        trained(config, folder=tmp_path)


def test_pretraining_refuses_too_little_public_text():
    with pytest.raises(ValueError, match="data.public has 39 sequences: 40 are needed"):
        pretrain(MODEL, sequences()[:39], PretrainingConfig(epochs=1), MODEL.init(0), 0)


def test_pretraining_refuses_a_batch_larger_than_the_text():
    with pytest.raises(ValueError, match="pretraining.batch_size = 191: must be at most 190"):
        trained(PretrainingConfig(epochs=1, batch_size=191))

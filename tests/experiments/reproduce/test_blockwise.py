"""The study of blockwise decoding counts what the decoder does, and its numbers are those of plain programs."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from experiments import data
from experiments.reproduce import blockwise, blockwise_drafts, blockwise_speed, blockwise_study, blockwise_texts
from experiments.reproduce.blockwise_drafts import Lattices
from experiments.runs import RunFolder, save_weights, write_json
from models.decoding.choices import Choices
from models.decoding.generator import Generator
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_drafter import KatzDrafter
from models.decoding.lattice_drafter import LatticeDrafter
from models.heads import HeadedLanguageModel
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters
from tests.experiments.reproduce.small_drafters import SPEAKERS
from tests.models import exported
from tests.models.decoding.test_heads_drafter import draw_model, katz_model, katz_tables, likeliest, rescorer

PROMPTS = [[3, 1, 4], [5, 6, 2], [2, 2, 9], [7, 7, 7], [1, 2, 3]]
PLACES, TOP_K, ALPHA = 16, 5, 0.7
COMMAND = "reproduce", "blockwise"  # "reproduce blockwise"


@pytest.fixture(scope="module")
def target():
    return draw_model("recurrent")


@pytest.fixture(scope="module")
def lattices(target):
    model, weights = target
    return blockwise_drafts.write_texts(model, weights, PROMPTS, PLACES, TOP_K, 2)


@pytest.fixture(scope="module")
def study_of(lattices):
    rescorers = blockwise_study.Rescorers({2: katz_tables(2), 4: katz_tables(4)}, rescorer())
    alphas = {"2-gram": ALPHA, "4-gram": 0.3, "neural": ALPHA}
    return blockwise_study.measure(lattices, rescorers, alphas, (2, 4))


def decode(target, drafter, **options):
    """Returns the numbers of tokens and of calls of each text by the decoder itself."""
    model, weights = target
    own = Generator(model, weights, "blockwise", drafter, 3, max_prompt=3, max_new_tokens=PLACES, **options)
    found = own(PROMPTS, Choices(PLACES, temperature=0.0)).acceptance
    return [part.decided for part in found], [part.calls for part in found]


@pytest.mark.parametrize(
    "way", ["2-gram", *(pytest.param(way, marks=pytest.mark.slow) for way in ("plain", "neural", "paths"))]
)
def test_blocks_are_those_of_the_decoder(target, lattices, way):
    if way == "plain":
        drafts, drafter = blockwise_drafts.draft_plain(lattices), HeadsDrafter()
    elif way == "2-gram":
        drafts = blockwise_drafts.draft_with_ngram(lattices, katz_tables(2), ALPHA)
        drafter = HeadsDrafter(KatzDrafter(katz_model(2)), TOP_K, ALPHA)
    elif way == "neural":
        drafts = blockwise_drafts.draft_with_model(lattices, rescorer(), ALPHA)
        drafter = HeadsDrafter(rescorer(), TOP_K, ALPHA)
    else:
        found = blockwise_drafts.draft_paths(lattices, katz_tables(2), ALPHA, 2, 4)
        is_right = found == lattices.following(3)[:, :, np.newaxis]
        lengths = blockwise_drafts.block_lengths(is_right).max(axis=-1)
        drafter = LatticeDrafter(katz_tables(2), TOP_K, ALPHA)
    if way != "paths":
        lengths = blockwise_drafts.block_lengths(drafts == lattices.following(3))
    tokens, calls = blockwise_drafts.walk(lengths)
    options = {"paths": 2} if way == "paths" else {}
    assert decode(target, drafter, **options) == (tokens.tolist(), calls.tolist())
    assert tokens.sum() > calls.sum()  # something is accepted


def test_entropies_are_means_over_all_places_of_all_texts(target, lattices):
    model, weights = target
    tokens = tf.constant(lattices.tokens)
    _, hidden, _ = model.extend_with_hidden(weights, tokens, model.initial_state(len(PROMPTS)))
    read = hidden[:, lattices.prompt - 2 :][:, :PLACES]
    logits = model.head_logits(weights, tf.reshape(read, [-1, read.shape[-1]])).numpy().astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    entropies = -(probabilities * np.log(probabilities)).sum(-1)
    np.testing.assert_allclose(lattices.entropies, entropies.mean(0), rtol=1e-4)


def test_texts_are_the_bases_greedy_ones(target, lattices):
    model, weights = target
    found = [likeliest(model, weights, prompt, PLACES + 3) for prompt in PROMPTS]
    assert lattices.tokens.tolist() == [[*prompt, *text] for prompt, text in zip(PROMPTS, found, strict=True)]


def test_oracle_bounds_every_way_and_rises_with_its_tokens(lattices):
    drafts = [
        blockwise_drafts.draft_plain(lattices),
        blockwise_drafts.draft_with_ngram(lattices, katz_tables(4), 2.0),
        blockwise_drafts.draft_with_model(lattices, rescorer(), 1.0),
    ]
    own = lattices.following(3)
    lengths = [blockwise_drafts.block_lengths(draft == own) for draft in drafts]
    oracles = [blockwise_study.count_with_oracle(lattices, k, 4) for k in range(1, TOP_K + 1)]
    np.testing.assert_array_equal(oracles[0], lengths[0])
    assert all((more >= less).all() for less, more in zip(oracles, oracles[1:], strict=False))
    assert all((oracles[-1] >= own).all() for own in lengths)
    few = blockwise_drafts.draft_paths(lattices, katz_tables(2), 1.0, 8, 4) == own[:, :, np.newaxis]
    by_paths = [blockwise_drafts.block_lengths(few[:, :, :p]).max(-1) for p in (1, 4, 8)]
    assert all((more >= less).all() for less, more in zip(by_paths, [*by_paths[1:], oracles[-1]], strict=True))


def test_weight_0_leaves_the_heads_drafts(lattices):
    plain = blockwise_drafts.draft_plain(lattices)
    np.testing.assert_array_equal(blockwise_drafts.draft_with_ngram(lattices, katz_tables(2), 0.0), plain)
    np.testing.assert_array_equal(blockwise_drafts.draft_with_model(lattices, rescorer(), 0.0), plain)
    np.testing.assert_array_equal(blockwise_drafts.draft_paths(lattices, None, 0.0, 1, 4)[:, :, 0], plain)


def test_blocks_and_walks_are_counted_by_hand():
    is_right = np.array([[[True, True, False], [False, True, True], [True, True, True], [False] * 3]])
    lengths = blockwise_drafts.block_lengths(is_right)
    assert lengths.tolist() == [[3, 1, 4, 1]]
    tokens, calls = blockwise_drafts.walk(lengths)  # places 0 and 3
    assert (tokens.tolist(), calls.tolist()) == ([4], [2])
    tokens, calls = blockwise_drafts.walk(lengths[:, 1:])  # places 0 and 1, and beyond the end
    assert (tokens.tolist(), calls.tolist()) == ([5], [2])


def test_repairs_are_counted_by_hand():
    before = np.array([[1, 5, 5, 7], [1, 1, 6, 7], [1, 5, 6, 8], [1, 5, 6, 7]], np.int32)
    after = np.array([[1, 5, 6, 7], [1, 5, 6, 6], [1, 5, 6, 7], [1, 2, 6, 7]], np.int32)
    own = np.array([[5, 6, 7]] * 4, np.int32)
    assert blockwise_study.repairs(before, after, own) == {
        "improved": 0.75,
        "worse": 0.25,
        "repetitions": pytest.approx(2 / 3),
        "wrong_repetitions": pytest.approx(2 / 3),
    }
    assert blockwise_study.repairs(before[3:], after[3:], own[3:])["wrong_repetitions"] == 0


def test_gain_is_the_ratio_of_tokens_per_call(study_of, lattices):
    for heads, ways in study_of["tokens"].items():
        plain = ways[blockwise_study.PLAIN]["tokens"]["estimate"]
        for name, entry in ways.items():
            assert entry["gain"]["estimate"] == pytest.approx(100 * (entry["tokens"]["estimate"] / plain - 1))
            assert 1 <= entry["tokens"]["estimate"] <= int(heads), name
    drafts = blockwise_drafts.draft_plain(lattices)[..., :1]
    tokens, calls = blockwise_drafts.walk(blockwise_drafts.block_lengths(drafts == lattices.following(1)))
    assert study_of["tokens"]["2"][blockwise_study.PLAIN]["tokens"]["estimate"] == tokens.sum() / calls.sum()


def test_gain_that_is_the_same_for_every_text_has_an_interval_without_width():
    """Whole texts are resampled, so that refined and plain drafts are always those of the same ones."""
    plain_tokens, calls = np.array([30.0, 64.0, 500.0, 9.0]), np.array([20.0, 30.0, 90.0, 9.0])
    gain = blockwise_study._gain_interval(1.25 * plain_tokens, calls, plain_tokens, calls)
    assert gain == pytest.approx({"estimate": 25, "low": 25, "high": 25})


def test_speed_is_the_time_of_plain_decoding_by_that_of_the_other_way():
    plain = np.array([2.0, 4.0, 6.0])
    assert blockwise_speed.compare_times(plain, plain / 4) == pytest.approx({"estimate": 4, "low": 4, "high": 4})
    found = blockwise_speed.compare_times(plain, np.array([1.0, 4.0, 3.0]))
    assert found["estimate"] == pytest.approx(12 / 8) and 1 <= found["low"] < 1.5 < found["high"] <= 2


class Silent:
    def note(self, text):
        pass


@pytest.fixture
def study(lattices):
    """The study of some texts, with n-gram models and a small model."""
    own = blockwise.Study.__new__(blockwise.Study)
    own._katz, own._heads, own._show = {order: katz_model(order) for order in (2, 4)}, [4], Silent()
    own._rescorers = blockwise_study.Rescorers({2: katz_tables(2), 4: katz_tables(4)}, rescorer())
    return own


def test_prompts_that_choose_the_weights_are_not_measured(study, lattices, monkeypatch):
    seen: dict[str, Any] = {}

    def keep(name, texts, result):
        seen[name] = texts
        return result

    monkeypatch.setattr(study, "_write_texts", lambda prompts: lattices)
    monkeypatch.setattr(blockwise_study, "tune", lambda part, _: keep("tune", part.tokens, {"2-gram": 1.0}))
    monkeypatch.setattr(blockwise_study, "measure", lambda part, *_: keep("measure", part.tokens, {"texts": 4}))
    monkeypatch.setattr(study, "_sample", lambda prompts, *_: keep("sample", prompts, []))
    assert study.measure("name", PROMPTS, 0) == {"text": "name", "texts": 4, "sampled": []}
    np.testing.assert_array_equal(seen["tune"], lattices.tokens[:1])
    np.testing.assert_array_equal(seen["measure"], lattices.tokens[1:])
    np.testing.assert_array_equal(seen["sample"], PROMPTS[1:])


def test_drafters_of_sampled_and_timed_texts_are_those_of_their_names(study):
    found = study._drafters({"2-gram": 0.25, "4-gram": 3.0, "neural": 7.0})
    assert list(found) == ["heads alone", "2-gram", "neural"] and found["heads alone"].rescorer is None
    bigram, neural = found["2-gram"], found["neural"]
    assert isinstance(bigram.rescorer, KatzDrafter) and bigram.rescorer.tables.order == 2
    assert neural.rescorer is study._rescorers.model
    assert [(own.alpha, own.top_k) for own in (bigram, neural)] == [(0.25, 16), (7.0, 16)]


def test_tuning_takes_the_weight_with_the_most_tokens_per_call(lattices):
    """A rescorer that knows the text is best with a large weight, and one that denies it with none."""

    class Known:
        order = 2

        def __init__(self, sign: float) -> None:
            self.sign = sign

        def log_probs(self, histories, tokens):
            followers = {(a, b) for row in lattices.tokens.tolist() for a, b in zip(row, row[1:], strict=False)}
            pairs = np.broadcast_arrays(histories[..., -1:], tokens)
            is_known = [(int(a), int(b)) in followers for a, b in zip(*(p.ravel() for p in pairs), strict=True)]
            return tf.constant(self.sign * np.reshape(is_known, pairs[0].shape), tf.float32)

    def tune(sign):
        tables = {2: Known(sign), 4: katz_tables(4)}
        return blockwise_study.tune(lattices, blockwise_study.Rescorers(tables, rescorer()))["2-gram"]  # type: ignore[arg-type]

    assert tune(1.0) > 0
    assert tune(-100.0) == 0


def test_prompts_of_chats_have_one_length(monkeypatch):
    class Words:
        size, start = 50, 1

        def prompt(self, text):
            return [1, *(len(word) for word in text.split())]

        def chat(self, message):
            return [2, *(len(word) for word in message.split()), 3]

    texts = {"Macbeth": "the king and " * 200, "Python's manual": "a list of things " * 200}
    monkeypatch.setattr(blockwise_texts, "read_texts", lambda files: texts)
    monkeypatch.setattr(blockwise_texts, "_more", lambda bible: {})
    found = blockwise_texts.choose(Words(), (), None, 3, 0)
    lengths = {name: {len(prompt) for prompt in prompts} for name, prompts in found.items()}
    assert lengths["Macbeth, long prompts"] == {96} and lengths["Macbeth, short prompts"] == {8}
    assert lengths["chat: summarise a scene"] == {80} and lengths["Python's manual"] == {32}


@pytest.mark.slow
def test_study_writes_tables_results_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "public_text", lambda config: (["the king and the night"] * 3, ()))
    for name, value in (("_PLACES", 3), ("_BLOCKS", 2), ("_CONTEXT", 160)):
        monkeypatch.setattr(blockwise, name, value)
    monkeypatch.setattr(blockwise_study, "ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(blockwise_study, "HEADS", (3,))
    small_drafters.write(tmp_path / "models")
    run, words = RunFolder(tmp_path / "heads"), exported.vocabulary()
    run.create(RunFolder(tmp_path / "models" / "target").read_config())
    base = exported.model()
    model = HeadedLanguageModel(base, 3)
    save_weights(run.weights, exported.weights(base) | model.init_heads(0))
    write_json(run.model, model.config())
    words.save(run.vocabulary)
    for number in range(4):
        lines = (" ".join(line) for _, line in SPEAKERS)
        (tmp_path / f"text{number}.txt").write_text("\n".join(lines) + "the king and the night " * 30)
    texts = [part for number in range(4) for part in ("--text", f"text{number}.txt")]
    options = ("--target", "heads", "--rescorer", "models/transformer", "--output", "study", "--prompts", "3")
    code, out, err = call(*COMMAND, *options, *texts, folder=tmp_path)
    assert code == 0, err
    results = json.loads((tmp_path / "study" / "metrics.json").read_text())
    assert [row["text"] for row in results["rows"]] == [f"text{number}.txt" for number in range(4)]
    assert {row["texts"] for row in results["rows"]} == {2}  # of 3 prompts, one chooses the weights
    assert (tmp_path / "study" / "plot.png").is_file()
    assert (tmp_path / "study" / "table.md").read_text() == out
    assert "| text0.txt | " in out and "| heads alone, h = 3 | " in out
    found = RunFolder(tmp_path / "study").path / "metrics.json"
    write_json(found, results | {"rows": results["rows"][:1] + [{**results["rows"][1], "h_max": 99}]})
    for options_again, message in (((), ""), (("--seed", "1"), "holds results of another seed: give another --output")):
        code, again, err = call(*COMMAND, *options, *options_again, *texts, folder=tmp_path)
        assert code == (2 if message else 0) and message in err
        assert message or ("| text1.txt | 99 |" in again and "| text3.txt | " in again)


def test_lattices_keep_their_rows(lattices):
    part = lattices.take(slice(1, 3))
    assert isinstance(part, Lattices)
    np.testing.assert_array_equal(part.following(2), lattices.following(2)[1:3])


@pytest.mark.parametrize(("heads", "message"), [(None, "has fewer than 3 prediction heads"), (2, "has fewer than 3")])
def test_model_without_heads_is_refused_in_one_line(tmp_path, monkeypatch, heads, message):
    base = exported.model()
    model = base if heads is None else HeadedLanguageModel(base, heads)
    monkeypatch.setattr(RunFolder, "require_trained", lambda self: None)
    monkeypatch.setattr(blockwise, "load_trained", lambda run: (model, {}, exported.vocabulary()))
    code, out, err = call(*COMMAND, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err

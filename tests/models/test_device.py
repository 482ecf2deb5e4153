import dataclasses
import itertools
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from models import device, device_signatures, tflite_file
from models.decoding.choices import Choices
from models.export import export
from models.vocabulary import BOS, EOS, FIRST_BYTE, Vocabulary
from tests.models import exported

MODEL = exported.model()
VOCABULARY = exported.vocabulary()


@pytest.fixture(scope="module", params=["float32", "int8"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / f"{request.param}.tflite"
    export(MODEL, exported.weights(MODEL), VOCABULARY, path, request.param, max_prompt=8, max_new_tokens=100)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    return device.load(path)


@pytest.mark.parametrize(
    "choices",
    [{}, {"temperature": 0.0}, {"temperature": 0.6, "top_k": 5}, {"seed": 2**64 - 1, "request": 3}],
)
def test_stream_gives_the_text_of_the_graph(loaded, choices):
    for seed, prompt in enumerate(["", "the", "é"]):
        # The host computes the random words of 64 positions at once, the graph those of all.
        arguments = {"max_new_tokens": 100, "stop_at_eos": False, "seed": seed, **choices}
        assert "".join(loaded.stream(prompt, **arguments)) == loaded.text(prompt, **arguments)


def test_drawing_from_prompt_and_first_tokens_gives_the_remaining_tokens(loaded):
    prompt = [BOS, *VOCABULARY.encode("the")]
    whole = list(loaded.draw(prompt, Choices(max_new_tokens=30, seed=4)))
    rest = list(loaded.draw([*prompt, *whole[:2]], Choices(max_new_tokens=28, seed=4)))
    assert rest == whole[2:]


@pytest.mark.parametrize(
    ("count", "lengths"), [(1, [1]), (8, [8]), (9, [1, 8]), (15, [7, 8]), (16, [8, 8]), (17, [1, 8, 8])]
)
def test_only_the_first_part_of_a_long_prompt_is_shorter_than_the_others(loaded, count, lengths):
    parts = loaded._split(range(count))
    assert [len(part) for part in parts] == lengths
    assert [token for part in parts for token in part] == list(range(count))


@pytest.mark.numerical
def test_long_prompts_are_read_to_the_end(loaded):
    """Logits of `prefill` followed by `decode` equal those of `decode` from the first token on.

    In int8 too: there the sums of products are integers, and exact.
    """
    prompt = [BOS, *VOCABULARY.encode("and the other and another")]
    assert len(prompt) > loaded.facts.max_prompt
    *_, (logits, _) = loaded.read(prompt)
    *_, (stepwise, _) = loaded.read(prompt, by_prefill=1)
    within = exported.logit_rounding(MODEL, exported.weights(MODEL), len(prompt))
    np.testing.assert_allclose(logits, stepwise, atol=within)
    *_, (shortened, _) = loaded.read(prompt[:-1])
    assert np.abs(logits - shortened).max() > 0.1
    with pytest.raises(ValueError, match="prompt: 14 tokens, but .* was exported for 8"):
        loaded.text("and the other and another", max_new_tokens=3)


def test_each_seed_and_request_gives_another_text(loaded):
    texts = {
        loaded.text("the", seed=seed, request=request, max_new_tokens=30, stop_at_eos=False)
        for seed, request in itertools.product(range(3), range(3))
    }
    assert len(texts) == 9


def test_draw_stops_after_the_end_of_sentence_token(loaded):
    for seed in range(40):
        tokens = list(loaded.draw([BOS], Choices(max_new_tokens=40, seed=seed, temperature=3.0, stop=EOS)))
        assert EOS not in tokens[:-1] and (tokens[-1] == EOS or len(tokens) == 40)


def test_stream_and_text_refuse_bad_choices_before_the_first_piece(loaded):
    for function in (loaded.stream, loaded.text):
        with pytest.raises(ValueError, match="temperature = nan"):
            function("", temperature=float("nan"))
        with pytest.raises(ValueError, match="lone surrogate"):
            function("\udcff")
    with pytest.raises(ValueError, match="max_new_tokens: 101, but .* was exported for 100"):
        loaded.text("", max_new_tokens=101)


def test_stream_never_draws_tokens_that_are_banned_or_not_allowed_by_the_mask(loaded):
    letters = [FIRST_BYTE + byte for byte in b"abc"]
    allowed = np.isin(np.arange(VOCABULARY.size), letters)
    options = {"max_new_tokens": 12, "stop_at_eos": False, "temperature": 5.0}
    text = "".join(loaded.stream("the", mask=lambda _: allowed, banned=letters[:1], **options))
    assert len(text) == 12 and set(text) == {"b", "c"}
    assert "".join(loaded.stream("the", bias={letters[2]: 1000.0}, **options)) == 12 * "c"
    calls: list[list[int]] = []
    tokens = list(loaded.draw([BOS], Choices(max_new_tokens=4), mask=calls.append))
    assert calls == [tokens[:i] for i in range(4)]


def test_repetition_penalty_depends_on_the_tokens_of_the_prompt(loaded):
    """Greedy, and with a penalty so large that positive logits of the prompt's tokens become the smallest ones."""
    prompt = [BOS, *VOCABULARY.encode("the")]
    first = next(loaded.draw(prompt, Choices(temperature=0.0)))
    *_, (logits, _) = loaded.read([*prompt, first])
    penalised = next(loaded.draw([*prompt, first], Choices(temperature=0.0, repetition_penalty=100.0)))
    factor = np.where(logits > 0, 0.01, 100.0)
    seen = np.isin(np.arange(VOCABULARY.size), [*prompt, first])
    assert penalised == np.where(seen, logits * factor, logits).argmax()


def test_stream_and_draw_refuse_bad_token_ids_before_the_first_token(loaded):
    for wrong in ({"banned": [VOCABULARY.size]}, {"bias": {-1: 1.0}}, {"bias": {0: float("nan")}}):
        with pytest.raises(ValueError, match="must be a"):
            loaded.stream("", **wrong)
        with pytest.raises(ValueError, match="must be a"):
            loaded.draws([BOS], [Choices()], **wrong)


OPTIONS = [
    {"top_p": 0.8, "frequency_penalty": 0.5},
    {"min_p": 0.05, "repetition_penalty": 1.4, "top_k": 40},
    {"presence_penalty": -1.0, "temperature": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_loop_in_the_graph_applies_every_option_as_the_stream_does(loaded, options):
    prompt, bias = [BOS, *VOCABULARY.encode("and the other")], {70: 3.0, 90: -2.0}
    for seed in range(5):
        choices = Choices(max_new_tokens=24, seed=seed, **options)
        streamed = list(loaded.draw(prompt, choices, bias=bias, banned=[80, 81]))
        assert loaded.draw_in_graph(prompt, choices, bias=bias, banned=[80, 81])["tokens"].tolist() == streamed


def test_a_graph_of_version_0_2_refuses_options_that_it_does_not_have():
    inputs = dict.fromkeys(["seed", "request", "temperature", "top_k", "top_p", "bias"], 0)
    assert list(device_signatures.keep_known(inputs, Choices(), None)) == ["seed", "request", "temperature", "top_k"]
    with pytest.raises(ValueError, match="^top_p = 0.5: the file's graph, of fedspeak 0.2 or earlier, applies"):
        device_signatures.keep_known(inputs, Choices(top_p=0.5), None)
    with pytest.raises(ValueError, match="^bias: the file's graph"):
        device_signatures.keep_known(inputs, Choices(), np.ones(4, np.float32))


def byte_tokens(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


def test_decode_stream_joins_characters_split_over_tokens():
    text = "né 😀 ok"
    pieces = list(device.decode_stream(VOCABULARY, byte_tokens(text)))
    assert pieces == list(text)
    half = [VOCABULARY.pieces.index("😀".encode()[:2]), *byte_tokens("😀")[2:]]
    assert list(device.decode_stream(VOCABULARY, half)) == ["😀"]


def test_decode_stream_replaces_characters_that_are_never_finished():
    begun = byte_tokens("😀")[:2]
    assert "".join(device.decode_stream(VOCABULARY, begun)) == "�"
    assert "".join(device.decode_stream(VOCABULARY, [*begun, *byte_tokens("x")])) == "�x"
    # The end of a sentence ends the character too, and its line break is kept.
    assert "".join(device.decode_stream(VOCABULARY, [*begun, EOS, *byte_tokens("x")])) == "�\nx"


def test_decode_stream_puts_line_breaks_between_sentences_only():
    tokens = [*byte_tokens("a"), EOS, *byte_tokens("b"), EOS]
    assert "".join(device.decode_stream(VOCABULARY, tokens)) == "a\nb"
    assert "".join(device.decode_stream(VOCABULARY, [EOS, EOS])) == "\n"


def test_decode_stream_equals_decode_for_random_tokens():
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens = [int(token) for token in rng.integers(3, VOCABULARY.size, 30)]
        assert "".join(device.decode_stream(VOCABULARY, tokens)) == VOCABULARY.decode(tokens)


def refusal(path):
    with pytest.raises(ValueError) as caught:
        device.load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


def test_load_refuses_missing_foreign_cut_and_damaged_files(path, tmp_path):
    wrong = tmp_path / "model.tflite"
    with pytest.raises(FileNotFoundError):
        device.load(wrong)
    for content in (b"", b"hello", zip_of_text(tmp_path)):
        wrong.write_bytes(content)
        assert "not a TFLite file" in refusal(wrong)
    whole = path.read_bytes()
    facts, _ = tflite_file.read(path)
    wrong.write_bytes(whole[: facts.flatbuffer_bytes])
    assert "its vocabulary or model.json is missing or invalid" in refusal(wrong)
    for cut in (len(whole) - 1, len(whole) - 100, facts.flatbuffer_bytes + 10, facts.flatbuffer_bytes // 2):
        wrong.write_bytes(whole[:cut])
        assert "cut short" in refusal(wrong)
    for place in (100, facts.flatbuffer_bytes // 2, facts.flatbuffer_bytes - 1):
        wrong.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "damaged" in refusal(wrong)


def test_read_refuses_or_ignores_a_flipped_bit_after_the_flatbuffer(path, tmp_path):
    """zipfile, zlib and json raise errors of many kinds on such files; all must become a ValueError with the path."""
    whole, read = path.read_bytes(), tflite_file.read(path)
    generator = np.random.default_rng(0)
    for place in generator.integers(read[0].flatbuffer_bytes, len(whole), 1500).tolist():
        flipped = whole[place] ^ (1 << int(generator.integers(8)))
        (tmp_path / "flipped.tflite").write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            assert tflite_file.read(tmp_path / "flipped.tflite") == read
        except ValueError as error:
            assert "cut short" in str(error) or "damaged" in str(error)


@pytest.mark.parametrize(
    "changes",
    [{"max_prompt": 1000}, {"max_prompt": "64"}, {"max_new_tokens": 0}, {"flatbuffer_bytes": "x"}, {"config": {}}],
)
def test_load_refuses_facts_that_contradict_the_flatbuffer(path, tmp_path, changes):
    facts, vocabulary = tflite_file.read(path)
    wrong = dataclasses.replace(facts, **changes)
    tflite_file.write(tmp_path / "m.tflite", path.read_bytes()[: facts.flatbuffer_bytes], vocabulary, wrong)
    assert "cut short" in refusal(tmp_path / "m.tflite") or "damaged" in refusal(tmp_path / "m.tflite")


def test_load_refuses_a_vocabulary_of_another_size(path, tmp_path):
    facts, vocabulary = tflite_file.read(path)
    smaller = Vocabulary(vocabulary.pieces[:-1])
    tflite_file.write(tmp_path / "m.tflite", path.read_bytes()[: facts.flatbuffer_bytes], smaller, facts)
    message = refusal(tmp_path / "m.tflite")
    assert "cut short, or not from" in message and "or from a version of fedspeak that this one cannot read" in message


def zip_of_text(folder):
    with zipfile.ZipFile(folder / "text.zip", "w") as archive:
        archive.writestr("model.json", "{}")
    return (folder / "text.zip").read_bytes()


def test_load_refuses_a_flatbuffer_that_the_runtime_cannot_load(path, tmp_path):
    """The file's checksum is right, but its flatbuffer is broken."""
    facts, vocabulary = tflite_file.read(path)
    content = b"\0\0\0\0TFL3" + b"\0" * 100
    broken = tflite_file.Facts(facts.precision, facts.config, 8, 40, [], len(content), tflite_file.checksum(content))
    tflite_file.write(tmp_path / "m.tflite", content, vocabulary, broken)
    assert "the runtime cannot load it" in refusal(tmp_path / "m.tflite")


def test_generating_text_imports_neither_tensorflow_nor_tff(path):
    code = f"""
import sys
from models import device
assert "".join(device.load({str(path)!r}).stream("the", max_new_tokens=5))
heavy = {{"tensorflow", "tensorflow_federated", "keras", "sentencepiece", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_read_accepts_a_file_of_version_0_1(path, tmp_path):
    facts, vocabulary = tflite_file.read(path)
    old = {name: value for name, value in dataclasses.asdict(facts).items() if name != "max_new_tokens"}
    with open(tmp_path / "old.tflite", "w+b") as file:
        file.write(path.read_bytes()[: facts.flatbuffer_bytes])
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("model.json", json.dumps({"format": "fedspeak model 1", "max_tokens": 100, **old}))
            archive.writestr("vocabulary.json", vocabulary.to_json())
    assert tflite_file.read(tmp_path / "old.tflite") == (facts, vocabulary)

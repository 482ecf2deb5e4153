"""Names of modes of decoding: what they stand for, and what is refused."""

import pytest

from experiments.bench.decoding import MODES
from experiments.decoding_modes import build, parse
from experiments.reproduce import spectr
from models.decoding.drafters import ModelDrafter
from tests.models.decoding.table_model import TableModel, draw_table


@pytest.mark.parametrize("name", sorted({*MODES, *spectr.MODES}))
def test_a_mode_has_its_name(name):
    assert parse(name).text == name


@pytest.mark.parametrize(
    ("name", "drafted", "flags"),
    [
        ("speculative:3", 3, "--decoding speculative --draft-length 3"),
        ("greedy-block:8", 8, "--decoding greedy-block --draft-length 8"),
        ("spectr:3x4", 12, "--decoding spectr --num-drafts 3 --draft-length 4"),
        ("tree:2,2", 6, "--decoding tree --tree 2,2"),
        ("distinct-tree:2,1", 4, ""),
        ("multi-path:2x3", 6, ""),
    ],
)
def test_drafted_tokens_and_options_of_export(name, drafted, flags):
    assert (parse(name).drafted, parse(name).flags) == (drafted, flags)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "block",
        "block:",
        "block:0",
        "block:x",
        "block:64",
        "spectr:4",
        "spectr:0x2",
        "tree:2,0",
        "tree:63,2",
        "beam:2",
    ],
)
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"^mode '{name}': must be DECODING:SIZES with at most 63 drafted tokens, as "):
        parse(name)


def test_decoders_are_those_of_the_names():
    model = TableModel(draw_table(0, 5))
    drafter = ModelDrafter(model, {})  # type: ignore[arg-type]
    assert build(None, model, {}, drafter).drafter is None
    built = {
        name: build(parse(name), model, {}, drafter) for name in ("block:3", "multi-path:2x3", "distinct-tree:2,2")
    }
    assert {name: type(each).__name__ for name, each in built.items()} == {
        "block:3": "Speculation",
        "multi-path:2x3": "TreeSpeculation",
        "distinct-tree:2,2": "TreeSpeculation",
    }
    assert built["distinct-tree:2,2"].rule.drafting == "without-replacement"  # type: ignore[attr-defined]
    assert [each.draft_length for each in built.values()] == [3, 3, 2]

import numpy as np
import pytest

from models.decoding.enumeration import enumerate_output, joint_law, texts_up_to
from models.decoding.lossless import check_lossless
from models.decoding.spectr import SpecTr
from models.decoding.traversal import Traversal
from models.decoding.verification import block_rule, token_rule
from tests.oracles import keyed_decoding


@pytest.mark.parametrize("rule", [token_rule, block_rule])
def test_rules_that_carry_nothing_are_lossless_over_several_blocks(rule):
    found = check_lossless(rule, blocks=3, models=6)
    assert found.passed, found


@pytest.mark.parametrize(
    ("option", "value"), [("blocks", 0), ("blocks", 1.5), ("blocks", float("nan")), ("models", 0), ("models", True)]
)
def test_counts_outside_their_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"^{option} = {value!r}: must be an integer >= 1$"):
        check_lossless(token_rule, **{option: value})


def reject_nothing(target, drafter, tokens, lengths):
    """Accepts the whole draft, so that the output has a law that is neither the target's nor the drafter's."""
    stops = token_rule(target, drafter, tokens, lengths)
    whole = np.eye(stops.probability.shape[1])[lengths.numpy()]
    return stops._replace(probability=stops.probability * 0 + whole)


@pytest.mark.parametrize("rule", [block_rule, reject_nothing])
def test_law_over_several_blocks_equals_that_of_the_oracle(rule):
    """The oracle, written apart, gives every decision a random number of its own here."""
    generator = np.random.default_rng(3)
    for size, length in ((2, 2), (3, 2)):
        texts = list(texts_up_to(size, 2))
        target, drafter = (dict(zip(texts, generator.dirichlet(np.ones(size), len(texts)), strict=True)) for _ in "12")
        found = enumerate_output(rule, target, drafter, size, length, blocks=2).law
        expected = keyed_decoding.law(
            lambda start, count: [(place, (start, 0)) for place in range(count + 3)],
            rule,
            target,
            drafter,
            size,
            length,
            2,
            length + 2,
        )
        np.testing.assert_allclose(found, expected, atol=1e-12)
        if rule is reject_nothing:
            assert np.max(np.abs(found - joint_law(target, size, length + 2))) > 1e-2


@pytest.mark.parametrize(
    "rule", [Traversal(), Traversal("without-replacement"), SpecTr()], ids=["tree", "without-replacement", "spectr"]
)
def test_rules_for_trees_pass(rule):
    found = check_lossless(rule, models=6)
    assert found.passed and found.accepted > found.sequential + 0.1


class Hasty(Traversal):
    """Accepts children a little more often than it should."""

    def stops(self, target, drafts, tree):
        return super().stops(1.2 * target, drafts, tree)


def test_a_rule_for_trees_that_is_not_lossless_fails():
    found = check_lossless(Hasty(), models=6)
    assert not found.is_lossless and str(found).startswith("NOT lossless")


def test_rules_for_trees_take_one_block():
    with pytest.raises(ValueError, match="^blocks = 2: must be 1 for a rule for trees"):
        check_lossless(SpecTr(), blocks=2)


@pytest.mark.parametrize("verifier", [Traversal, SpecTr])
def test_a_class_in_place_of_a_rule_is_refused(verifier):
    name = verifier.__name__
    with pytest.raises(ValueError, match=rf"^verifier = {name}: is a class; give an instance, for example {name}\(\)$"):
        check_lossless(verifier)

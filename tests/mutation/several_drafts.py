"""Lists bugs of decoding with several drafts, of its reports and of the quick path that its requests may take."""

from tests.mutation.bug import Bug

_TESTS = "tests/models/decoding/"
_PLAIN = _TESTS + "test_loop.py::test_requests_are_plain_if_the_temperature_alone_changes_logits"
_DEVICE = "tests/models/test_device_acceptance.py::"
_BLOCK_DECODER = "models/decoding/block_decoder.py"
_DRAW = _TESTS + "test_spectr_draw.py::"

SEVERAL_DRAFTS = (
    Bug(
        "a request is plain if the first row has no bias",
        _BLOCK_DECODER,
        "tf.reduce_any(tf.not_equal(bias, 0.0))",
        "tf.reduce_any(tf.not_equal(bias[:1], 0.0))",
        _PLAIN,
    ),
    Bug(
        "a request is plain if its biases are negative",
        _BLOCK_DECODER,
        "tf.reduce_any(tf.not_equal(bias, 0.0))",
        "tf.reduce_any(bias > 0.0)",
        _PLAIN,
    ),
    Bug(
        "a request is plain if its penalties are below those that are off",
        _BLOCK_DECODER,
        "{name: tf.not_equal(value, getattr(OFF, name)) for name, value in options.items()}",
        "{name: tf.convert_to_tensor(value) > getattr(OFF, name) for name, value in options.items()}",
        _PLAIN,
    ),
    Bug(
        "spectr: a draft that was not made is taken at the end of the random numbers",
        "models/decoding/spectr.py",
        " & (bounds < bounds[:, -1:])",
        " & (tf.range(chains + 1) < chains)",
        _DRAW + "test_draw_at_the_ends_of_all_numbers_takes_no_draft_that_was_not_made_or_is_never_accepted",
    ),
    Bug(
        "spectr: draws with the number of the whole block at every depth, in exact integration",
        "models/decoding/spectr.py",
        "uniform = (uniform - begin) / tf.where(width > 0, width, tf.ones_like(width))",
        "uniform = uniform + 0 * width",
        _DRAW + "test_output_of_draw_over_all_random_numbers_has_the_distribution_of_the_target[2-3-2-False]",
    ),
    Bug(
        "generate --report does not compare with the best rule",
        "experiments/commands/generate.py",
        "compare = report_path is not None",
        "compare = False",
        "tests/experiments/commands/test_generate_drafts.py::test_report_and_last_line_say_the_share_of_the_optimum",
    ),
    Bug(
        "the comparison with the best rule is timed",
        "models/device_blocks.py",
        """            self._firsts.append([outputs[name][0] for name in ("first_drafter", "first_target")])
""",
        """            self._firsts.append([outputs[name][0] for name in ("first_drafter", "first_target")])
            self.compare()
""",
        "tests/experiments/commands/test_generate_drafts.py::test_speed_does_not_count_the_comparison",
    ),
    Bug(
        "a block's first distributions have each other's names",
        "models/signatures.py",
        '("first_target", "first_drafter")',
        '("first_drafter", "first_target")',
        _DEVICE + "test_block_of_a_signature_names_the_distributions_of_target_and_drafter",
    ),
    Bug(
        "the device compares for another number of drafts",
        "models/device.py",
        'self.facts.num_drafts if compare and decoding == "spectr" else 0',
        '1 if compare and decoding == "spectr" else 0',
        _DEVICE + "test_k_seq_is_compared_for_the_number_of_drafts_of_the_file_if_that_is_asked_for",
    ),
    Bug(
        "greedy drafts: nothing takes the place of the random draft",
        "models/decoding/transport.py",
        "        rest[following] = 1\n",
        "        pass\n",
        _TESTS + "test_transport.py::test_greedy_acceptance_is_that_of_the_children_that_are_drafted",
    ),
    Bug(
        "a generator compares for one draft",
        "models/decoding/generator.py",
        "return first_acceptance(target, drafter, num_drafts)",
        "return first_acceptance(target, drafter, 1)",
        _TESTS + "test_first_acceptance.py::"
        "test_generator_sums_the_acceptances_of_k_seq_and_the_best_rule_over_its_blocks",
    ),
)

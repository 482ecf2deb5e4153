"""Options of decoding with a model's own heads: those that do not go together end in one line, before any work."""

import pytest

from tests.experiments.processes import call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoding", "blockwise", "--drafter", "lookup"], "blockwise drafts with the model's own heads, not with"),
        (["--heads", "3"], "--heads has no use without --decoding blockwise or --drafter heads: drop it"),
        (["--drafter", "lookup", "--rescore", "lookup"], "--rescore has no use without --decoding blockwise or"),
        (["--decoding", "blockwise", "--alpha", "2"], "--alpha has no use without --rescore: drop it"),
        (["--decoding", "blockwise", "--heads", "3", "--draft-length", "2"], "--heads and --draft-length say the same"),
        (["--decoding", "blockwise", "--paths", "2", "--rescore", "lookup"], "--rescore lookup drafts one path: drop"),
        (["--decoding", "blockwise", "--decoding", "tree", "--paths", "2"], "--paths is for --decoding blockwise only"),
        (["--decoding", "blockwise", "--heads", "1"], "--heads"),
        (["--decoding", "blockwise", "--draft-length", "auto"], "does not go with --decoding blockwise"),
        (["--decoding", "blockwise"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together_end_in_one_line(tmp_path, options, message):
    code, out, err = call("export", "nowhere", *options, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err

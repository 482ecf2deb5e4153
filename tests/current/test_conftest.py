import os

import pytest

from tests.current.conftest import is_up_to_date


@pytest.mark.parametrize(("made", "is_new"), [(None, False), (10, False), (19, False), (20, True), (30, True)])
def test_a_run_is_up_to_date_if_no_source_is_newer(tmp_path, made, is_new):
    sources = [tmp_path / "a.py", tmp_path / "b.py"]
    for path, time in zip([*sources, tmp_path / "complete"], (10, 20, made), strict=True):
        if time is not None:
            path.touch()
            os.utime(path, (time, time))
    assert is_up_to_date(tmp_path / "complete", sources) is is_new

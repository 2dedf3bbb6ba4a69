"""Several annotators on one folder, with a server that is killed: the short version of benchmarks/annotators.py."""

import pytest

from benchmarks.annotators import failures, simulate

pytestmark = pytest.mark.server


def test_nobodys_label_is_lost_mixed_up_or_stuck(tmp_path):
    counts = simulate(tmp_path, volumes=3, annotators=2, kills=1, restores=1)
    assert not any(failures(counts).values()), counts
    assert (counts["volumes"], counts["submitted"], counts["kills"], counts["restored"]) == (3, 7, 1, 1), counts

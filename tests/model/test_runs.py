"""Gaps become runs, outcomes are remembered within a limit."""

from types import SimpleNamespace

import pytest

from lib.model.runs import Memo, Run, plan

THERE, EMPTY = SimpleNamespace(object_score=3.0), SimpleNamespace(object_score=-3.0)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({4: THERE}, [Run(4, -1, 4), Run(4, 1, 5)]),
        ({0: THERE}, [Run(0, 1, 9)]),
        ({3: THERE, 7: THERE}, [Run(3, -1, 3), Run(7, 1, 2), Run(3, 1, 3, 7), Run(7, -1, 3, 3)]),
        ({3: THERE, 4: THERE}, [Run(3, -1, 3), Run(4, 1, 5)]),
        ({3: EMPTY, 7: THERE}, [Run(7, 1, 2), Run(3, 1, 3, 7), Run(7, -1, 3, 3)]),
        ({3: EMPTY, 7: EMPTY}, []),
    ],
)  # fmt: skip
def test_gaps_are_run_from_both_ends_and_nothing_leaves_an_empty_slice(annotations, expected):
    assert plan(sorted(annotations), 0, 9, True, True, annotations) == expected


def test_one_direction_only():
    assert plan([3, 7], 0, 9, True, False, {3: THERE, 7: THERE}) == [Run(7, 1, 2), Run(3, 1, 3, 7)]


def test_slices_of_a_run_come_in_its_order():
    assert Run(7, -1, 3, 3).slices == [6, 5, 4]


def test_the_memo_forgets_what_was_used_longest_ago():
    memo = Memo(limit=100)
    memo.put("a", 1, 40)
    memo.put("b", 2, 40)
    assert memo.get("a") == 1  # now b is the oldest
    memo.put("c", 3, 40)
    assert (memo.get("a"), memo.get("b"), memo.get("c"), memo.bytes) == (1, None, 3, 80)
    memo.put("a", 4, 50)
    assert memo.get("a") == 4 and memo.bytes == 90
    memo.clear()
    assert memo.get("a") is None and memo.bytes == 0

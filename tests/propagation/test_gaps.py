"""Gaps become runs, outcomes are remembered within a limit."""

from types import SimpleNamespace

import pytest
import torch

from lib.propagation.gaps import ABSENT, GapPass, ResultCache, pass_outputs, plan_passes

THERE, EMPTY = SimpleNamespace(object_score=3.0), SimpleNamespace(object_score=-3.0)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({4: THERE}, [GapPass(4, -1, 4), GapPass(4, 1, 5)]),
        ({0: THERE}, [GapPass(0, 1, 9)]),
        ({3: THERE, 7: THERE}, [GapPass(3, -1, 3), GapPass(7, 1, 2), GapPass(3, 1, 3, 7), GapPass(7, -1, 3, 3)]),
        ({3: THERE, 4: THERE}, [GapPass(3, -1, 3), GapPass(4, 1, 5)]),
        ({3: EMPTY, 7: THERE}, [GapPass(7, 1, 2), GapPass(3, 1, 3, 7), GapPass(7, -1, 3, 3)]),
        ({3: EMPTY, 7: EMPTY}, []),
    ],
)  # fmt: skip
def test_gaps_are_run_from_both_ends_and_nothing_leaves_an_empty_slice(annotations, expected):
    assert plan_passes(sorted(annotations), 0, 9, True, True, annotations) == expected


def test_one_direction_only():
    assert plan_passes([3, 7], 0, 9, True, False, {3: THERE, 7: THERE}) == [GapPass(7, 1, 2), GapPass(3, 1, 3, 7)]


def test_slices_of_a_run_come_in_its_order():
    assert GapPass(7, -1, 3, 3).slices == [6, 5, 4]


def test_stops_are_multiples_of_the_stride_so_that_runs_share_them():
    assert GapPass(7, -1, 7, None, 3).stops == [6, 3, 0]
    assert GapPass(2, 1, 8, None, 3).stops == [3, 6, 9]
    assert GapPass(3, 1, 2, 6, 3).stops == [5]  # none in between: the last


def flat(value):
    return torch.full((2, 2), float(value))


def test_between_stops_is_interpolated_from_the_annotated_slice_on():
    run = GapPass(1, 1, 6, None, 3)  # fills 2..7, stops at 3 and 6
    logits, iou, score = pass_outputs(run, [(flat(4), 0.5, 2.0), (flat(-2), 0.2, -1.0)], (flat(8), 0.9, 6.0))
    assert logits[:, 0, 0].tolist() == pytest.approx([6, 4, 2, 0, -2, -2], abs=1e-5)
    assert iou.tolist() == pytest.approx([0.7, 0.5, 0.4, 0.3, 0.2, 0.2])
    assert score.tolist() == pytest.approx([4, 2, 1, 0, -1, -1], abs=1e-5)


def test_an_object_that_is_lost_ends_between_two_stops():
    run = GapPass(0, 1, 8, None, 4)  # stops at 4 and 8; early stop before 8
    logits, _, score = pass_outputs(run, [(flat(6), 0.5, 2.0)], (flat(6), 0.9, 2.0))
    assert (logits[:, 0, 0] > 0).tolist() == [True] * 5 + [False] * 3
    assert logits[-1, 0, 0] == ABSENT and score[-1] == -10


def test_without_a_stride_nothing_is_changed():
    logits, _, _ = pass_outputs(GapPass(0, 1, 2), [(flat(600), 0.5, 2.0), (flat(ABSENT), 0.5, -2.0)], (flat(1), 1.0, 1.0))
    assert logits[:, 0, 0].tolist() == [600, ABSENT]


def test_the_memo_forgets_what_was_used_longest_ago():
    memo = ResultCache(limit=100)
    memo.put("a", 1, 40)
    memo.put("b", 2, 40)
    assert memo.get("a") == 1  # now b is the oldest
    memo.put("c", 3, 40)
    assert (memo.get("a"), memo.get("b"), memo.get("c"), memo.bytes) == (1, None, 3, 80)
    memo.put("a", 4, 50)
    assert memo.get("a") == 4 and memo.bytes == 90
    memo.clear()
    assert memo.get("a") is None and memo.bytes == 0

"""Gaps between annotated slices become passes."""

from types import SimpleNamespace

import pytest

from lib.propagation.gaps import GapPass, opposite_pass, plan_passes

FILLED, EMPTY = SimpleNamespace(is_empty=False), SimpleNamespace(is_empty=True)


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [
        ({4: FILLED}, [GapPass(4, -1, 4), GapPass(4, 1, 5)]),
        ({0: FILLED}, [GapPass(0, 1, 9)]),
        ({7: FILLED, 3: FILLED}, [GapPass(3, -1, 3), GapPass(7, 1, 2), GapPass(3, 1, 3, 7), GapPass(7, -1, 3, 3)]),
        ({3: FILLED, 4: FILLED}, [GapPass(3, -1, 3), GapPass(4, 1, 5)]),
        ({3: EMPTY, 7: FILLED}, [GapPass(7, 1, 2), GapPass(3, 1, 3, 7), GapPass(7, -1, 3, 3)]),
        ({3: EMPTY, 7: EMPTY}, []),
    ],
)  # fmt: skip
def test_gaps_are_passed_from_both_ends_and_nothing_leaves_an_empty_slice(annotated, expected):
    assert plan_passes(annotated, 0, 9) == expected


def test_one_direction_only():
    assert plan_passes({3: FILLED, 7: FILLED}, 0, 9, backward=False) == [GapPass(7, 1, 2), GapPass(3, 1, 3, 7)]


def test_slices_of_a_pass_come_in_its_order():
    assert GapPass(7, -1, 3, 3).slices == [6, 5, 4]


def test_tracked_slices_are_multiples_of_the_stride_so_that_passes_share_them():
    assert GapPass(7, -1, 7, None, 3).tracked_slices == [6, 3, 0]
    assert GapPass(2, 1, 8, None, 3).tracked_slices == [3, 6, 9]
    assert GapPass(3, 1, 2, 6, 3).tracked_slices == [5], "no multiple in the gap: its last slice"


def test_the_opposite_pass_comes_from_the_other_end_of_the_same_gap():
    passes = [GapPass(7, 1, 2), GapPass(3, 1, 3, 7), GapPass(7, -1, 3, 3), GapPass(7, 1, 1, 9)]
    assert opposite_pass(passes[1], passes) == passes[2] and opposite_pass(passes[2], passes) == passes[1]
    assert opposite_pass(passes[0], passes) is None and opposite_pass(passes[3], passes) is None

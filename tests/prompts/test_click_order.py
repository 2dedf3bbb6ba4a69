"""The order of clicks inside and outside, inferred from the masks that were displayed."""

import numpy as np

from lib.prompts.click_order import infer_click_order
from lib.prompts.volume_prompts import SlicePrompt


def prompt(*rows):
    """Return clicks and corners (x, y, label)."""
    table = np.array(rows, float).reshape(-1, 3)
    return SlicePrompt(table[:, :2], table[:, 2].astype(np.int32))


def masks_by_count(**columns):
    """Return a function that displays columns a..b of a 20 x 20 slice after n prompts, from keywords like n1=(3, 8)."""
    def displayed_mask(prompt):
        low, high = columns[f"n{len(prompt.labels)}"]
        mask = np.zeros((20, 20), bool)
        mask[:, low:high] = True
        return mask

    return displayed_mask


def test_a_click_where_the_mask_is_right_comes_later():
    clicks = prompt((5, 5, 1), (12, 5, 1), (2, 5, 0))
    order = infer_click_order(clicks, masks_by_count(n1=(0, 15), n2=(4, 10)))  # first too far to the left, then not enough to the right
    assert order.points[:, 0].tolist() == [5, 2, 12] and order.labels.tolist() == [1, 0, 1]


def test_of_two_errors_the_deeper_one_was_clicked_first():
    clicks = prompt((5, 10, 1), (18, 10, 1), (4, 10, 0))
    assert infer_click_order(clicks, masks_by_count(n1=(3, 8), n2=(3, 20))).labels.tolist() == [1, 1, 0]  # 10 columns off, and 2


def test_the_order_of_clicks_of_one_side_stays_and_a_box_comes_first():
    clicks = prompt((1.5, 1.5, 2), (9.5, 9.5, 3), (5, 5, 1), (6, 6, 1))
    assert infer_click_order(clicks, None).points.tolist() == clicks.points.tolist()
    mixed = prompt((1.5, 1.5, 2), (9.5, 9.5, 3), (5, 5, 1), (2, 5, 0))
    assert infer_click_order(mixed, masks_by_count(n2=(0, 20))).labels.tolist() == [2, 3, 0, 1]

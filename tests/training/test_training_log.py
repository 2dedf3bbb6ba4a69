"""The log of a training run: what counts after an interruption, and the picture of it."""

import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.training.training_log import Record, read_rows

ROWS = [
    {"phase": 0, "step": 50, "total": 50, "seconds": 3, "loss": 2.0, "click": 0.4},
    {"phase": 0, "step": 60, "total": 60, "seconds": 4, "loss": 1.5, "click": 0.5},
    {"phase": 0, "step": 60, "total": 60, "seconds": 5, "check_click": 0.45},
    {"phase": 1, "step": 50, "total": 110, "seconds": 8, "loss": 1.0, "click": 0.7},
    {"phase": 1, "step": 100, "total": 160, "seconds": 11, "loss": 0.5, "click": 0.8},
]


@pytest.fixture
def filled(tmp_path):
    record = Record(tmp_path, (0, 0))
    for row in ROWS:
        record.add(row)
    return record


def test_rows_are_kept_as_they_were_added(filled):
    assert read_rows(filled.path) == ROWS


@pytest.mark.parametrize(("done", "kept"), [
    ((0, 0), 0), ((0, 50), 1), ((0, 59), 1), ((0, 60), 3), ((1, 0), 3), ((1, 50), 4), ((1, 99), 4), ((2, 0), 5),
])  # fmt: skip
def test_rows_after_the_saved_state_are_dropped(filled, tmp_path, done, kept):
    again = Record(tmp_path, done)
    assert read_rows(again.path) == ROWS[:kept]
    assert again.total == (ROWS[kept - 1]["total"] if kept else 0)
    again.add(ROWS[4])
    assert read_rows(again.path) == [*ROWS[:kept], ROWS[4]]


def test_a_cut_last_line_is_ignored(filled, tmp_path):
    text = filled.path.read_text()
    filled.path.write_text(text[:-9])
    assert read_rows(filled.path) == ROWS[:-1]
    again = Record(tmp_path, (1, 100))
    again.add(ROWS[4])
    assert read_rows(filled.path) == ROWS and len(text.splitlines()) == len(filled.path.read_text().splitlines())


def test_no_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("count", [0, 1, len(ROWS)])
def test_the_curves_are_a_picture(tmp_path, count):
    record = Record(tmp_path, (0, 0))
    for row in ROWS[:count]:
        record.add(row)
    record.draw()
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 500 and picture.std() > 0


def losses(folder) -> list[tuple[int, float]]:
    """(step, loss) as TensorBoard would show them."""
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("loss")]


def test_tensorboard_forgets_what_is_done_again(filled, tmp_path):
    assert losses(tmp_path) == [(50, 2.0), (60, 1.5), (110, 1.0), (160, 0.5)]
    Record(tmp_path, (1, 0)).add({**ROWS[3], "loss": 3.0})
    assert losses(tmp_path) == [(50, 2.0), (60, 1.5), (110, 3.0)]

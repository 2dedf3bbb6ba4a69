"""Tests of the log of a training run: its rows after an interruption, TensorBoard events and the plot."""

import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.training.training_log import TrainingLog, read_rows

ROWS = [
    {"step": 50, "seconds": 3, "loss": 2.0, "click": 0.4},
    {"step": 60, "seconds": 4, "loss": 1.5, "click": 0.5},
    {"step": 60, "seconds": 5, "check_click": 0.45},
    {"step": 110, "seconds": 8, "loss": 1.0, "click": 0.7},
    {"step": 160, "seconds": 11, "loss": 0.5, "click": 0.8},
]


@pytest.fixture
def filled_log(tmp_path):
    """A log with all rows."""
    log = TrainingLog(tmp_path, 0)
    for row in ROWS:
        log.append(row)
    return log


def test_rows_are_kept_as_they_were_added(filled_log):
    assert read_rows(filled_log.path) == ROWS


@pytest.mark.parametrize(("completed", "kept"), [(0, 0), (50, 1), (59, 1), (60, 3), (109, 3), (110, 4), (159, 4), (200, 5)])
def test_rows_after_the_saved_state_are_removed(filled_log, tmp_path, completed, kept):
    reopened = TrainingLog(tmp_path, completed)
    assert read_rows(reopened.path) == ROWS[:kept]
    reopened.append(ROWS[4])
    assert read_rows(reopened.path) == [*ROWS[:kept], ROWS[4]]


def test_a_cut_last_line_is_ignored(filled_log, tmp_path):
    text = filled_log.path.read_text()
    filled_log.path.write_text(text[:-9])
    assert read_rows(filled_log.path) == ROWS[:-1]
    reopened = TrainingLog(tmp_path, 110)
    reopened.append(ROWS[4])
    assert read_rows(filled_log.path) == ROWS and len(text.splitlines()) == len(filled_log.path.read_text().splitlines())


def test_a_missing_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("count", [0, 1, len(ROWS)])
def test_the_curves_are_plotted(tmp_path, count):
    log = TrainingLog(tmp_path, 0)
    for row in ROWS[:count]:
        log.append(row)
    log.plot()
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 500 and picture.std() > 0


def read_tensorboard_losses(folder) -> list[tuple[int, float]]:
    """Return (step, loss) as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("loss")]


def test_tensorboard_events_of_repeated_steps_are_replaced(filled_log, tmp_path):
    assert read_tensorboard_losses(tmp_path) == [(50, 2.0), (60, 1.5), (110, 1.0), (160, 0.5)]
    TrainingLog(tmp_path, 100).append({**ROWS[3], "loss": 3.0})
    assert read_tensorboard_losses(tmp_path) == [(50, 2.0), (60, 1.5), (110, 3.0)]

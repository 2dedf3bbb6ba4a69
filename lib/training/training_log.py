"""The log of a training run for people to look at: log.jsonl, TensorBoard events and a plot of the curves."""

import json
import logging
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lib.common.atomic_files import write_text

logger = logging.getLogger(__name__)


class TrainingLog:
    """The log of a run in a folder.

    Args:
        completed: Number of steps in the state from which the run is resumed. Later rows of an existing log are removed, because the
            steps after that state are repeated.
    """

    def __init__(self, folder: Path, completed: int):
        self.path, self.picture = folder / "log.jsonl", folder / "curves.png"
        rows = [r for r in read_rows(self.path) if r["step"] <= completed]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in rows))
        self._tensorboard = SummaryWriter(str(folder / "events"), purge_step=completed + 1)

    def append(self, row: dict) -> None:
        """Add a row with at least its step. Its numbers of type float are metrics."""
        logger.info("%s", row)
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(name, value, row["step"])
        self._tensorboard.flush()

    def plot(self) -> None:
        """Save a plot of the metrics over all steps: the loss above; below the others, which are shares between 0 and 1."""
        rows = read_rows(self.path)
        figure = Figure(figsize=(9, 6))
        top, bottom = figure.subplots(2, 1, sharex=True)
        for name in sorted({k for r in rows for k, v in r.items() if isinstance(v, float)} - {"norm"}):
            points = [(r["step"], r[name]) for r in rows if name in r]
            style = {"marker": "o", "linestyle": "--"} if name.startswith("check") else {"alpha": 0.8}
            (top if name == "loss" else bottom).plot(*zip(*points, strict=True), label=name, **style)
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, ncols=4)
        top.set(ylabel="loss")
        bottom.set(ylabel="Dice, share right", ylim=(0, 1), xlabel="step")
        figure.tight_layout()
        figure.savefig(self.picture, dpi=90)


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a log. A last line that an interruption has cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

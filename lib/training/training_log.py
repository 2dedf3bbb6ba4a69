"""What a training leaves behind to look at: log.jsonl, TensorBoard events and a picture of the curves."""

import json
import logging
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Record:
    """Log of a run in a folder.

    Args:
        folder: where log.jsonl, events and curves.png go.
        done: (phase, step) up to which an earlier part of the run counts; rows after that are dropped, because the steps
            after the last saved state are done again.
    """

    def __init__(self, folder: Path, done: tuple[int, int]):
        self.path, self.picture = folder / "log.jsonl", folder / "curves.png"
        rows = [r for r in read_rows(self.path) if (r["phase"], r["step"]) <= done]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        temporary.replace(self.path)
        self.total = rows[-1].get("total", 0) if rows else 0
        self._board = SummaryWriter(str(folder / "events"), purge_step=self.total + 1)

    def add(self, row: dict) -> None:
        """One row with at least phase, step, total (steps of all phases so far) and figures."""
        logger.info("%s", {k: v for k, v in row.items() if k != "total"})
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, row["total"])
        self._board.flush()

    def draw(self) -> None:
        """Writes curves.png."""
        draw_curves(read_rows(self.path), self.picture)


def read_rows(path: Path) -> list[dict]:
    """Rows of a log; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def draw_curves(rows: list[dict], path: Path) -> None:
    """Loss above, Dice and shares below, over all steps."""
    figure = Figure(figsize=(9, 6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    names = sorted({k for r in rows for k, v in r.items() if isinstance(v, float)})
    for name in names:
        points = [(r["total"], r[name]) for r in rows if name in r]
        axes = top if name == "loss" else bottom
        style = {"marker": "o", "linestyle": "--"} if name.startswith("check") else {"alpha": 0.8}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    starts = {}
    for r in rows:
        starts.setdefault(r["phase"], r["total"])
    for axes in (top, bottom):
        for start in list(starts.values())[1:]:
            axes.axvline(start, color="grey", linewidth=0.5)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=4)
    top.set_ylabel("loss")
    bottom.set_ylabel("Dice, share right")
    bottom.set_ylim(0, 1)
    bottom.set_xlabel("step (grey: next phase)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)

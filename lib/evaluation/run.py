"""A run over all cases of an evaluation. Every finished case has a file of its own, so that a killed run can be resumed."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from urllib.parse import quote

from lib.common.atomic_files import write_text
from lib.common.errors import UserError
from lib.engine.options import Options
from lib.evaluation.case_evaluation import EvaluationSettings, evaluate_case
from lib.evaluation.distribute import Executor, Worker, WorkerFactory, process_unfinished, report_case
from lib.evaluation.methods.decoder_candidates import DecoderCandidates
from lib.evaluation.methods.method import Method
from lib.imaging.datasets import Case


class ResultStore:
    """The folder of a run: run.json describes the run, and cases/NAME.json, written atomically, holds the report of each case."""

    def __init__(self, out: Path, settings: EvaluationSettings, data: str, resume: bool = True):
        """Create the folder `out`, or open it to resume its run; without `resume`, earlier reports are deleted.

        A run to resume that has other settings or another data folder raises UserError.
        """
        self.folder = Path(out)
        # Through JSON once, because tuples come back from a file as lists.
        description = json.loads(json.dumps({"data": data, **dataclasses.asdict(settings)}))
        path = self.folder / "run.json"
        if resume and path.is_file():
            try:
                stored = json.loads(path.read_text())
                differing = [k for k in description if stored.get(k) != description[k]]
            except (ValueError, AttributeError) as e:
                raise UserError(f"{path} does not say what run this is: choose another --out, or --no-resume.") from e
            if differing:
                raise UserError(f"{out} holds a run with another {', '.join(differing)}: choose another --out, or --no-resume.")
        elif path.is_file():
            for p in (self.folder / "cases").glob("*.json"):
                p.unlink()
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(description, indent=1))

    def is_finished(self, case: Case) -> bool:
        """Return whether the case has a report without an error."""
        return self._path(case.name).is_file() and "error" not in self.load(case)

    def save(self, report: dict) -> None:
        """Write the report of a case."""
        write_text(self._path(report["case"]), json.dumps(report))

    def load(self, case: Case) -> dict:
        """Return the stored report of a case."""
        return json.loads(self._path(case.name).read_text())

    def _path(self, name: str) -> Path:
        return self.folder / "cases" / f"{quote(name, safe='')}.json"


def run_cases(
    cases: list[Case], store: ResultStore, make_worker: WorkerFactory, execute: Executor, progress: Callable[..., Iterable]
) -> list[dict]:
    """Evaluate the cases that the store has no report of, and return the reports of all cases in their order.

    For `execute` and `progress` see `lib.evaluation.distribute.process_unfinished`.
    """
    for report in process_unfinished(cases, store.is_finished, make_worker, execute, progress):
        store.save(report)
    return [store.load(c) for c in cases]


def make_case_worker(settings: EvaluationSettings, method_classes: list[Callable[[Options], Method]], options: Options) -> Worker:
    """Return a worker that evaluates cases; it loads the networks at its first case."""

    @cache
    def load() -> tuple[list[Method], DecoderCandidates | None]:
        methods = [method_class(options) for method_class in method_classes]
        return methods, DecoderCandidates(options) if settings.protocol == "dong" else None

    return partial(report_case, process=lambda case: evaluate_case(case, settings, *load()))

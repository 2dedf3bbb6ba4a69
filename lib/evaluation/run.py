"""All cases of an evaluation: a finished case is a file of its own, so that a killed run goes on where it was."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

from lib.common.atomic_files import write_text
from lib.common.errors import UserError
from lib.engine.options import Options
from lib.evaluation.case_evaluation import Settings, evaluate_case
from lib.evaluation.methods.decoder_candidates import Candidates
from lib.evaluation.methods.method import Method
from lib.imaging.datasets import Case

logger = logging.getLogger(__name__)

Make = Callable[[], list[Method]]  # the methods of a run, loaded; runs where the cases do
Work = Callable[[Case], dict]


def worker(settings: Settings, make: Make, options: Options) -> Work:
    """Evaluates cases, one after the other, with networks that are loaded at the first."""
    loaded: list = []

    def work(case: Case) -> dict:
        start = time.perf_counter()
        try:
            if not loaded:
                loaded.extend([make(), Candidates(options) if settings.protocol == "dong" else None])
            report = evaluate_case(case, settings, *loaded)
        except Exception as e:  # a case that fails is listed, the others go on
            logger.debug("Case %s failed.", case.name, exc_info=True)
            report = {"rows": [], "error": str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"}
        return {"case": case.name, **report, "seconds": round(time.perf_counter() - start, 2)}

    return work


def local(cases: list[Case], make_work: Callable[[], Work]) -> Iterator[dict]:
    """Reports of all cases, in this process."""
    work = make_work()
    return map(work, cases)


class Store:
    """The folder of a run: run.json says what it is, cases/NAME.json what came out of each case. A case's file appears complete
    or not at all."""

    def __init__(self, out: Path, settings: Settings, data: str, resume: bool = True):
        """
        Raises:
            UserError: another run's folder.
        """
        self.folder = Path(out)
        told = json.loads(json.dumps({"data": data, **dataclasses.asdict(settings)}))
        path = self.folder / "run.json"
        if resume and path.is_file():
            try:
                known = json.loads(path.read_text())
                other = [k for k in told if known.get(k) != told[k]]
            except (ValueError, AttributeError) as e:
                raise UserError(f"{path} does not say what run this is: choose another --out, or --no-resume.") from e
            if other:
                raise UserError(f"{out} holds a run with another {', '.join(other)}: choose another --out, or --no-resume.")
        elif path.is_file():
            for p in (self.folder / "cases").glob("*.json"):
                p.unlink()
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(told, indent=1))

    def finished(self, case: Case) -> dict | None:
        """What came out of a case; None if nothing did yet, or an error."""
        path = self._path(case.name)
        report = json.loads(path.read_text()) if path.is_file() else {"error": ""}
        return None if "error" in report else report

    def put(self, report: dict) -> None:
        write_text(self._path(report["case"]), json.dumps(report))

    def report(self, case: Case) -> dict:
        return json.loads(self._path(case.name).read_text())

    def _path(self, name: str) -> Path:
        return self.folder / "cases" / f"{quote(name, safe='')}.json"


def run(
    cases: list[Case], store: Store, make_work: Callable[[], Work], execute=local, progress: Callable[[Iterable], Iterable] = iter
) -> list[dict]:
    """Reports of all cases, in their order; those that the store has are not computed again.

    Args:
        execute: reports of cases in any order, see `local` and `lib.evaluation.distribute.remote`.
        progress: wraps the reports for display, called with the keyword total.
    """
    todo = [c for c in cases if store.finished(c) is None]
    if len(todo) < len(cases):
        logger.info("%d of %d cases are finished already.", len(cases) - len(todo), len(cases))
    for report in progress(execute(todo, make_work), total=len(todo)) if todo else ():
        store.put(report)
        if "error" in report:
            logger.warning("%s failed: %s", report["case"], report["error"])
    return [store.report(c) for c in cases]


def work_for(settings: Settings, classes: list[Callable[[Options], Method]], options: Options) -> Callable[[], Work]:
    """A maker of workers that can be sent to other processes: `classes` are those of the methods."""
    return partial(worker, settings, partial(_make, classes, options), options)


def _make(classes, options: Options) -> list[Method]:
    return [c(options) for c in classes]

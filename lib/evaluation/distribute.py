"""Executors, which process cases in this process or, by Ray (optional, requirements-ray.txt), on the GPUs of one or many machines."""

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import torch

from lib.common.errors import UserError
from lib.imaging.datasets import Case

logger = logging.getLogger(__name__)

Worker = Callable[[Case], dict]  # Processes a case and returns its report.
WorkerFactory = Callable[[], Worker]  # Can be pickled, and is called in the process in which the worker is to work.
Executor = Callable[[list[Case], WorkerFactory], Iterator[dict]]  # Returns the reports of cases in any order.

ROOT = Path(__file__).resolve().parents[2]
MAX_RETRIES = 3  # How often a case is tried again after its worker process died.


def run_in_process(cases: list[Case], make_worker: WorkerFactory) -> Iterator[dict]:
    """Return the reports of all cases, computed in this process as they are asked for."""
    return map(make_worker(), cases)


def run_on_ray(cases: list[Case], make_worker: WorkerFactory, *, address: str | None = None, workers: int | None = None) -> Iterator[dict]:
    """Yield the reports of all cases as they are finished. Other machines need the same checkout and data at the same paths.

    A worker takes one GPU if the cluster has any, else one core, and keeps its networks between cases.

    Args:
        address: Address of a running cluster ("auto", "ray://host:10001"); None starts a cluster on this machine.
        workers: Number of workers of a cluster that is started on this machine; by default one for each GPU or core.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as e:
        raise UserError("Ray is not installed: .venv/bin/pip install -r requirements-ray.txt") from e
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    # With another number of threads, sums could differ in their last digits from those of this process.
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}}
    starts_ray = not ray.is_initialized()
    try:
        if starts_ray:
            cores = {} if address else {"num_cpus": workers, "include_dashboard": False}
            ray.init(address, runtime_env=environment, log_to_driver=False, **cores)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise UserError(f"There is no Ray cluster at {address!r}: {e}") from e
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(_process_case)
        shared = ray.put(make_worker)
        pending = {task.remote(shared, case): case for case in cases}
        while pending:
            (task_id,), _ = ray.wait(list(pending))
            yield _get_report(ray, task_id, pending.pop(task_id))
    finally:
        if starts_ray:
            ray.shutdown()


def choose_executor(engine: str, address: str | None = None, workers: int | None = None) -> Executor:
    """Return `run_in_process` for the engine "local" and `run_on_ray` for "ray"; raise UserError if the engine is unknown."""
    if engine == "local":
        return run_in_process
    if engine == "ray":
        return partial(run_on_ray, address=address, workers=workers)
    raise UserError(f"Unknown engine {engine!r}: use local or ray.")


def process_unfinished(
    cases: list[Case], is_finished: Callable[[Case], bool], make_worker: WorkerFactory, execute: Executor, progress: Callable[..., Iterable]
) -> Iterator[dict]:
    """Yield the reports of the cases that are not finished yet, in any order, and log which of them failed.

    Args:
        progress: Wraps the iterable of reports for display; called with the keyword `total`.
    """
    todo = [c for c in cases if not is_finished(c)]
    if len(todo) < len(cases):
        logger.info("%d of %d cases are finished already.", len(cases) - len(todo), len(cases))
    for report in progress(execute(todo, make_worker), total=len(todo)) if todo else ():
        if "error" in report:
            logger.warning("%s failed: %s", report["case"], report["error"])
        yield report


def report_case(case: Case, process: Worker) -> dict:
    """Return the report of `process` with the case's name and the seconds it took; an exception becomes an "error" in the report."""
    start = time.perf_counter()
    try:
        report = process(case)
    except Exception as e:  # A case that fails must not stop the others.
        logger.debug("%s failed.", case.name, exc_info=True)
        report = {"rows": [], "error": str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"}
    return {"case": case.name, **report, "seconds": round(time.perf_counter() - start, 2)}


def _get_report(ray, task_id, case: Case) -> dict:
    """Return the report of a finished task, or one with an error if its worker died at every attempt."""
    try:
        return ray.get(task_id)
    except ray.exceptions.RayError as e:
        why = getattr(e, "cause", None) or "its worker was lost"
        return {"case": case.name, "rows": [], "error": f"{type(e).__name__}: {why}", "seconds": 0.0}


@cache
def _make_worker_once(pickled_make_worker: bytes) -> Worker:
    """Return this process's worker for a run, so that networks are loaded only once in each process."""
    return pickle.loads(pickled_make_worker)()


def _process_case(make_worker: WorkerFactory, case: Case) -> dict:
    """Process a case in a worker process of Ray."""
    return _make_worker_once(pickle.dumps(make_worker))(case)

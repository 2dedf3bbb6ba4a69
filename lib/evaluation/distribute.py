"""Cases over the GPUs of one or many machines, by Ray (optional, requirements-ray.txt)."""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch

from lib.common.errors import UserError
from lib.imaging.datasets import Case

ROOT = Path(__file__).resolve().parents[2]
RETRIES = 3  # of a case whose worker was lost


def remote(cases: list[Case], make_work: Callable, *, address: str | None = None, workers: int | None = None) -> Iterator[dict]:
    """Reports of cases as they are finished; see `lib.evaluation.run.local`, which gives the same.

    A worker takes one GPU where the cluster has any, else one core, and keeps its networks. Other machines need the same checkout
    and the same data at the same paths.

    Args:
        address: of a running cluster ("auto", "ray://host:10001"); None starts one on this machine.
        workers: of the one that is started here; default: one for each GPU, or each core.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as e:
        raise UserError("Ray is not installed: .venv/bin/pip install -r requirements-ray.txt") from e
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    # As many threads as here: another number may change sums in their last digits.
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}}
    own = not ray.is_initialized()
    try:
        if own:
            cores = {} if address else {"num_cpus": workers, "include_dashboard": False}
            ray.init(address, runtime_env=environment, log_to_driver=False, **cores)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise UserError(f"There is no Ray cluster at {address!r}: {e}") from e
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        one = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_one)
        shared = ray.put(make_work)
        waiting = {one.remote(shared, case): case for case in cases}
        while waiting:
            done, _ = ray.wait(list(waiting))
            for reference in done:
                yield _outcome(ray, reference, waiting.pop(reference))
    finally:
        if own:
            ray.shutdown()


def executor(engine: str, address: str | None = None, workers: int | None = None) -> Callable:
    """`lib.evaluation.run.local` or `remote`, by the name on the command line.

    Raises:
        UserError: another name.
    """
    from lib.evaluation.run import local

    if engine == "local":
        return local
    if engine == "ray":
        return partial(remote, address=address, workers=workers)
    raise UserError(f"Unknown engine {engine!r}: use local or ray.")


def _outcome(ray, reference, case: Case) -> dict:
    """A case whose worker was lost again and again has failed, the others go on."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as e:
        why = getattr(e, "cause", None) or "its worker was lost"
        return {"case": case.name, "rows": [], "error": f"{type(e).__name__}: {why}", "seconds": 0.0}


@cache
def _worker(made: bytes):
    """One worker for each process and run: networks are loaded once."""
    import pickle

    return pickle.loads(made)()


def _one(make_work: Callable, case: Case) -> dict:
    import pickle

    return _worker(pickle.dumps(make_work))(case)

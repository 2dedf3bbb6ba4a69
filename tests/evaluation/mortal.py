"""A worker that is lost once; in a module of its own, because the processes of Ray import it."""

import os


def maker(folder):
    """A worker that dies at its first attempt at case b, and answers with its process."""
    def work(case):
        tried = folder / case.name
        if case.name == "b" and not tried.exists():
            tried.touch()
            os._exit(1)
        return {"case": case.name, "rows": [], "process": os.getpid()}

    return work

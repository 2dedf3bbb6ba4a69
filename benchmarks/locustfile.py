"""Annotators for `benchmarks/load.py`, which starts locust with this file in an environment of its own (see there).

LOAD_PLAN names a JSON file: {"volumes": {image: [[step, ...], ...]}, "think": seconds}; each step has the `params` of a request and
the `digest` of the mask that it gave when nobody else asked. LOAD_OUT names the JSON file for what was measured.
"""

import hashlib
import itertools
import json
import os
import random
from pathlib import Path

from locust import HttpUser, constant, constant_pacing, events, task

PLAN = json.loads(Path(os.environ["LOAD_PLAN"]).read_text())
WRONG = "wrong mask"
FULL = (429, 503)  # the server's way to say: later
rows = []  # [what, milliseconds, status, wrong mask, message] of each request
numbers = itertools.count()


def digest(answer: bytes) -> str:
    """Of the voxels of an uncompressed NRRD; its header holds the time."""
    return hashlib.blake2b(answer.partition(b"\n\n")[2], digest_size=16).hexdigest()


@events.request.add_listener
def note(name, response_time, response, exception, **_):
    status, message = response.status_code if response is not None else 0, "" if exception is None else str(exception)[:200]
    rows.append([name, response_time, status, message == WRONG, message])


@events.quitting.add_listener
def save(environment, **_):
    Path(os.environ["LOAD_OUT"]).write_text(json.dumps(rows))


class Annotator(HttpUser):
    """Asks what is next, clicks on a structure, corrects the mask twice, and sometimes saves it."""

    wait_time = constant(PLAN["think"])

    def on_start(self):
        self.number = next(numbers)
        self.random = random.Random(self.number)

    @task
    def annotate(self):
        me = f"annotator_{self.number}"
        self.client.post("/activelearning/worst_slice", json={"client_id": me}, name="next sample")
        image = self.random.choice(sorted(PLAN["volumes"]))
        mask = b""
        for step in self.random.choice(PLAN["volumes"][image]):
            self.wait()
            mask = self.infer(image, {**step["params"], "client_id": me}, step["digest"]) or mask
        if mask and self.random.random() < 0.3:
            self.client.put(
                f"/datastore/label?image={image}&tag={me}", data={"params": '{"label_info": [{"name": "organ", "idx": 1}]}'},
                files={"label": ("mask.nrrd", mask)}, name="save label",
            )  # fmt: skip

    def infer(self, image: str, params: dict, expected: str) -> bytes:
        asked = {"data": {"params": json.dumps(params)}, "name": "infer", "catch_response": True}
        with self.client.post(f"/infer/sam2?image={image}&output=image", **asked) as answer:
            if answer.status_code in FULL:
                self.wait()
            if not answer.ok:
                answer.failure(f"{answer.status_code} {answer.text[:150]}")
                return b""
            if digest(answer.content) != expected:
                answer.failure(WRONG)
            return answer.content


class Watcher(HttpUser):
    """One more client, which only looks whether the server answers."""

    fixed_count = 1
    wait_time = constant_pacing(0.2)

    @task
    def look(self):
        self.client.get("/info/", name="info")

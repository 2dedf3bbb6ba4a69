"""Simulate the annotators of `benchmarks/load.py`, which starts Locust with this file in an environment of its own.

The environment variable LOAD_PLAN names a JSON file {"volumes": {image: [[step, ...], ...]}, "think": seconds}. Each step has the
`params` of a request and the `digest` of the mask that they gave when nobody else used the server. LOAD_OUT names the JSON file to
which the measured requests are written.
"""

import hashlib
import itertools
import json
import os
import random
from pathlib import Path

from locust import HttpUser, constant, constant_pacing, events, task

PLAN = json.loads(Path(os.environ["LOAD_PLAN"]).read_text())
WRONG_MASK = "wrong mask"
BUSY_STATUSES = (429, 503)  # The server asks the client to try again later.
rows = []  # [kind of request, milliseconds, status, whether the mask is wrong, message] of each request
annotator_numbers = itertools.count()


def mask_digest(nrrd: bytes) -> str:
    """Return a digest of the voxels of an uncompressed NRRD file; its header is left out because it holds the time."""
    return hashlib.blake2b(nrrd.partition(b"\n\n")[2], digest_size=16).hexdigest()


@events.request.add_listener
def record_request(name, response_time, response, exception, **_):
    """Add a row for a request."""
    status, message = response.status_code if response is not None else 0, "" if exception is None else str(exception)[:200]
    rows.append([name, response_time, status, message == WRONG_MASK, message])


@events.quitting.add_listener
def save_rows(environment, **_):
    """Write the rows when Locust quits."""
    Path(os.environ["LOAD_OUT"]).write_text(json.dumps(rows))


class Annotator(HttpUser):
    """An annotator who asks for the next sample, clicks on a structure, corrects the mask twice and sometimes saves it."""

    wait_time = constant(PLAN["think"])

    def on_start(self):
        """Give each annotator another random sequence."""
        self.number = next(annotator_numbers)
        self.random = random.Random(self.number)

    @task
    def annotate(self):
        """Annotate one structure of one volume."""
        client_id = f"annotator_{self.number}"
        self.client.post("/activelearning/worst_slice", json={"client_id": client_id}, name="next sample")
        image = self.random.choice(sorted(PLAN["volumes"]))
        mask = b""
        for step in self.random.choice(PLAN["volumes"][image]):
            self.wait()
            mask = self.infer(image, {**step["params"], "client_id": client_id}, step["digest"]) or mask
        if mask and self.random.random() < 0.3:
            self.client.put(
                f"/datastore/label?image={image}&tag={client_id}", data={"params": '{"label_info": [{"name": "organ", "idx": 1}]}'},
                files={"label": ("mask.nrrd", mask)}, name="save label",
            )  # fmt: skip

    def infer(self, image: str, params: dict, expected_digest: str) -> bytes:
        """Return the answer to one inference request, empty when the request failed; count another mask than expected as wrong."""
        request = {"data": {"params": json.dumps(params)}, "name": "infer", "catch_response": True}
        with self.client.post(f"/infer/sam2?image={image}&output=image", **request) as answer:
            if answer.status_code in BUSY_STATUSES:
                self.wait()
            if not answer.ok:
                answer.failure(f"{answer.status_code} {answer.text[:150]}")
                return b""
            if mask_digest(answer.content) != expected_digest:
                answer.failure(WRONG_MASK)
            return answer.content


class HealthMonitor(HttpUser):
    """One additional client, which only asks whether the server answers."""

    fixed_count = 1
    wait_time = constant_pacing(0.2)

    @task
    def get_info(self):
        """Ask for the server's description."""
        self.client.get("/info/", name="info")

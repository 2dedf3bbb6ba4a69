"""Helpers for tests of faults: a server that can be killed, labels of a single value, and a record of what happened.

Each tested fault adds a line to build/faults.jsonl, which `benchmarks/faults.py` prints. The environment variable SAM2_FAULT_TRIES sets
how often a server is killed.
"""

import gzip
import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from lib.common.errors import OptionError
from lib.serving.launch import start_monailabel, wait_for
from tests.serving.processes import free_port

TRIES = int(os.environ.get("SAM2_FAULT_TRIES", 1))
RECORD_FILE = Path(__file__).resolve().parents[2] / "build" / "faults.jsonl"
SHAPE = (48, 48, 8)
CLICK = {"foreground": [[20, 24, 4]], "label": "ball", "result_extension": ".nii.gz"}


def record_fault(fault: str, tries: int, answers, lost: int) -> None:
    """Record what a fault did, and fail the test if anything was lost.

    Args:
        fault: What happened to the server.
        tries: How often it happened.
        answers: What the clients received, as text or as a Counter of texts.
        lost: How many results or labels were lost.
    """
    text = answers if isinstance(answers, str) else ", ".join(f"{answer} ({n})" for answer, n in sorted(answers.items()))
    RECORD_FILE.parent.mkdir(exist_ok=True)
    with open(RECORD_FILE, "a") as file:
        file.write(json.dumps({"fault": fault, "tries": tries, "client_got": text, "lost": int(lost)}) + "\n")
    assert lost == 0


class KillableServer:
    """A server process on a folder or a DICOM store, with the requests that a client sends to it.

    Args:
        studies: The folder, or the DICOMweb address.
        conf: Pairs for `--conf`.
        **environment: Environment variables of the server.
    """

    def __init__(self, studies, conf=(), **environment):
        self.studies, self.conf, self.environment = studies, list(conf), environment
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        """Start the process and wait until it answers."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, str(value))
            self.process = start_monailabel(str(self.studies), "127.0.0.1", self.port, self.conf)
        try:
            wait_for(f"{self.address}/openapi.json", self.process)
        except OptionError:
            self.process.kill()
            raise

    def kill(self):
        """Kill the process and its children, because a training would go on without it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for child in children:
            child.kill()
        psutil.wait_procs(children, 10)

    def infer(self, image="ball_0", **params):
        """Ask for a mask and return the HTTP answer."""
        fields = {"params": json.dumps({**CLICK, **params})}
        return requests.post(f"{self.address}/infer/sam2", params={"image": image, "output": "image"}, data=fields, timeout=120)

    def save(self, image, tag, content: bytes, value=None):
        """Save a label with `value` in its info and return the HTTP answer."""
        fields, file = {"params": json.dumps({"value": value})}, {"label": ("label.nii.gz", content)}
        query = {"image": image, "tag": tag}
        return requests.put(f"{self.address}/datastore/label", params=query, data=fields, files=file, timeout=120)

    def saved_values(self, image, tag) -> tuple[int, int] | None:
        """Return the value of all voxels of a label and the value in its info, or None if the server has no such label."""
        query = {"label": image, "tag": tag}
        answer = requests.get(f"{self.address}/datastore/label", params=query, timeout=30)
        if answer.status_code == 404:
            return None
        info = requests.get(f"{self.address}/datastore/label/info", params=query, timeout=30).json()
        values = np.unique(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)
        assert answer.ok and len(values) == 1, "half-written, or of two labels"
        return int(values[0]), info["value"]


def image_bytes(array) -> bytes:
    """Return the content of a .nii.gz file with voxels of 2 x 2 x 5 mm."""
    return gzip.compress(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes(), 1)


def label_bytes(value: int) -> bytes:
    """Return the file of a label that has one value everywhere."""
    return image_bytes(np.full(SHAPE, value, np.uint8))


def refusal_text(answer) -> str:
    """Return the status and the sentence of a refused request."""
    assert answer.status_code >= 400 and "Traceback" not in answer.text, answer.text
    return f"{answer.status_code}: {answer.json()['detail']}"


def write_ball_volumes(folder: Path) -> list[Path]:
    """Write three volumes with a bright ball each and return the paths of the balls' masks, which lie beside them."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    for n in range(3):
        ball = ((x - 20 - 3 * n) / 9) ** 2 + ((y - 24) / 9) ** 2 + ((z - 4) / 3.2) ** 2 < 1
        noise = np.random.default_rng(n).normal(0, 8, SHAPE)
        (folder / f"ball_{n}.nii.gz").write_bytes(image_bytes((80 + 90 * ball + noise).astype(np.int16)))
        (folder / f"ball_{n}.mask").write_bytes(image_bytes(ball.astype(np.uint8)))
    return sorted(folder.glob("*.mask"))


def wait_until(condition, seconds=120, pause_s=0.1):
    """Wait until `condition()` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause_s)

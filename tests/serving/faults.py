"""What tests of faults share: a server that can be killed, labels of one value, a table of what happened.

Each fault adds a row to build/faults.jsonl, which `benchmarks/faults.py` prints; SAM2_FAULT_TRIES sets how often a server is killed.
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

from lib.serving.launch import free_port, start_monailabel, wait_for

TRIES = int(os.environ.get("SAM2_FAULT_TRIES", 1))
ROWS = Path(__file__).resolve().parents[2] / "build" / "faults.jsonl"
SHAPE = (48, 48, 8)
CLICK = {"foreground": [[20, 24, 4]], "label": "ball", "result_extension": ".nii.gz"}


def row(fault: str, tries: int, got, lost: int) -> None:
    """Notes what happened; nothing may be lost. `got`: what clients were answered, text or a Counter of texts."""
    text = got if isinstance(got, str) else ", ".join(f"{k} ({n})" for k, n in sorted(got.items()))
    ROWS.parent.mkdir(exist_ok=True)
    with open(ROWS, "a") as file:
        file.write(json.dumps({"fault": fault, "tries": tries, "client_got": text, "lost": int(lost)}) + "\n")
    assert lost == 0


class Server:
    """A server process on a folder or a DICOM store, and what a client asks of it."""

    def __init__(self, studies, conf=(), **environment):
        self.studies, self.conf, self.environment = studies, list(conf), environment
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, str(value))
            self.process = start_monailabel(str(self.studies), "127.0.0.1", self.port, self.conf)
        wait_for(f"{self.address}/openapi.json", self.process, 120)

    def kill(self):
        """With what it started: else a training would go on without it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for child in children:
            child.kill()
        psutil.wait_procs(children, 10)

    def infer(self, image="ball_0", **params):
        fields = {"params": json.dumps({**CLICK, **params})}
        return requests.post(f"{self.address}/infer/sam2", params={"image": image, "output": "image"}, data=fields, timeout=120)

    def save(self, image, tag, content: bytes, value=None):
        fields, file = {"params": json.dumps({"value": value})}, {"label": ("label.nii.gz", content)}
        where = {"image": image, "tag": tag}
        return requests.put(f"{self.address}/datastore/label", params=where, data=fields, files=file, timeout=120)

    def saved(self, image, tag) -> tuple[int, int] | None:
        """(value of all voxels, value in the info) of a label; None if the server knows none."""
        where = {"label": image, "tag": tag}
        answer = requests.get(f"{self.address}/datastore/label", params=where, timeout=30)
        if answer.status_code == 404:
            return None
        info = requests.get(f"{self.address}/datastore/label/info", params=where, timeout=30).json()
        values = np.unique(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)
        assert answer.ok and len(values) == 1, "half-written, or of two labels"
        return int(values[0]), info["value"]


def image_bytes(array) -> bytes:
    return gzip.compress(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes(), 1)


def label_bytes(value: int) -> bytes:
    return image_bytes(np.full(SHAPE, value, np.uint8))


def said(answer) -> str:
    """Status and sentence of a refusal."""
    assert answer.status_code >= 400 and "Traceback" not in answer.text, answer.text
    return f"{answer.status_code}: {answer.json()['detail']}"


def fill(folder: Path) -> list[Path]:
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    for n in range(3):
        ball = ((x - 20 - 3 * n) / 9) ** 2 + ((y - 24) / 9) ** 2 + ((z - 4) / 3.2) ** 2 < 1
        noise = np.random.default_rng(n).normal(0, 8, SHAPE)
        (folder / f"ball_{n}.nii.gz").write_bytes(image_bytes((80 + 90 * ball + noise).astype(np.int16)))
        (folder / f"ball_{n}.mask").write_bytes(image_bytes(ball.astype(np.uint8)))
    return sorted(folder.glob("*.mask"))


def until(condition, seconds=120, pause=0.1):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)

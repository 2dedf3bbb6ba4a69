"""Two real servers on one studies folder behind the real nginx, with the shipped command and configuration."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.imaging.readers import read_volume
from lib.serving.launch import wait_for
from tests.deploy import nginx
from tests.deploy.nginx import DEPLOY
from tests.serving.processes import free_port
from tests.serving.test_server import slicer_client

ROOT = DEPLOY.parent
IMAGES = [f"scan{n}" for n in range(16)]
CLICKS = [[20, 18, 2], [22, 20, 4]]  # in the bright ball

pytestmark = [pytest.mark.server, pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is not installed")]


def image_command() -> list[str]:
    """Return the command that the container runs: ENTRYPOINT and CMD of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [part for name in ("ENTRYPOINT", "CMD") for part in json.loads(re.search(rf"^{name} (\[.*\])", text, re.M)[1])]


class Replica:
    """A server process on a port of its own; the folder `shared` stands for /data of the image."""

    def __init__(self, shared: Path, log: Path):
        self.port, self.log, self.process = free_port(), log, None
        self.name = f"127.0.0.1:{self.port}"
        self.address = f"http://{self.name}"
        program = Path(sys.executable).with_name("monailabel")
        replacements = {"monailabel": str(program), "0.0.0.0": "127.0.0.1", "8000": str(self.port)}
        self._command = [
            replacements.get(c, c.replace("/opt/sam2-monailabel", str(ROOT)).replace("/data", str(shared))) for c in image_command()
        ]  # fmt: skip
        paths = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": paths, "MONAI_LABEL_SESSION_PATH": str(shared / "sessions")}

    def start(self) -> None:
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self._command, cwd=self.log.parent, stdout=log, stderr=log, env=self._environment)

    def wait(self) -> None:
        wait_for(f"{self.address}/info/", self.process, 120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder that the servers share, with studies that show a bright ball."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "studies").mkdir()
    rng = np.random.default_rng(0)
    i, j, k = np.indices((40, 36, 6))
    distance = np.sqrt((i - 20) ** 2 + (j - 18) ** 2 + 9 * (k - 3) ** 2)
    for image in IMAGES:
        array = np.where(distance < 9, 150, 40) + rng.integers(0, 20, distance.shape)
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([-1, -1, 3.0, 1])), folder / "studies" / f"{image}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def replicas(shared, tmp_path_factory):
    """The two servers; the first is the primary."""
    logs = tmp_path_factory.mktemp("logs")
    both = [Replica(shared, logs / f"{n}.txt") for n in (1, 2)]
    try:
        for r in both:
            r.start()
        for r in both:
            r.wait()
        yield both
    finally:
        for r in both:
            r.process.terminate()
        for r in both:
            try:
                r.process.wait(30)
            except subprocess.TimeoutExpired:
                r.kill()


@pytest.fixture(scope="module")
def tls():
    return free_port()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def proxy(replicas, certificates, tls):
    servers = {f"server{n}:8000": r.name for n, r in enumerate(replicas, 1)}
    yield from nginx.run(certificates, servers, free_port(), tls)


def infer(proxy: str, image: str, clicks: list) -> requests.Response:
    params = {"label": "spleen", "foreground": clicks, "background": [], "client_id": "test", "result_extension": ".nrrd",
              "result_dtype": "uint8", "result_compress": False}  # fmt: skip
    return requests.post(f"{proxy}/infer/sam2?image={image}&output=image", data={"params": json.dumps(params)}, timeout=120)


def mask_bytes(answer: requests.Response) -> bytes:
    """Return the voxels of an answer in NRRD."""
    assert answer.status_code == 200, answer.text
    return answer.content.partition(b"\n\n")[2]


def annotated_slices(address: str, image: str) -> list[int]:
    """Return the slices annotated so far, according to a server."""
    return requests.get(f"{address}/sam2/state?image={image}", timeout=30).json()["structures"]["spleen"]["annotated"]


def submit_label(proxy: str, image: str, array: np.ndarray, structure: str) -> requests.Response:
    """Submit a label as OHIF and Slicer do."""
    volume = nib.Nifti1Image(array.astype(np.uint8), np.diag([-1, -1, 3.0, 1]))
    info = json.dumps({"label_info": [{"name": structure, "idx": 1}]})
    files = {"label": ("label.nii", volume.to_bytes())}
    return requests.put(f"{proxy}/datastore/label?image={image}", data={"params": info}, files=files, timeout=60)


def submitted_labels(address: str) -> dict[str, str]:
    """Return {image: name of its structure} of all labels that a server knows."""
    objects = requests.get(f"{address}/datastore/?output=all", timeout=30).json()["objects"]
    finals = {image: o["labels"].get("final") for image, o in objects.items()}
    return {image: f["info"].get("label_info", [{"name": "lost"}])[0]["name"] for image, f in finals.items() if f}


def wait_until(condition, timeout_s: float = 40) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "This did not happen in time."
        time.sleep(0.1)


def count_connections(port: int) -> int:
    """Return the number of established connections to a port of this machine, accepted or not."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(r[1].endswith(f":{port:04X}") and r[3] == "01" for r in rows)


def test_an_image_stays_with_one_server_and_images_spread(proxy, replicas):
    servers = {}
    for _ in range(2):
        for n in range(24):
            answer = requests.get(f"{proxy}/sam2/state?image=unknown{n}", timeout=30)
            assert answer.status_code == 404
            servers.setdefault(n, set()).add(answer.headers["X-Upstream"])
    assert all(len(s) == 1 for s in servers.values())
    assert set.union(*servers.values()) == {r.name for r in replicas}


@pytest.mark.parametrize("method, path", [
    ("GET", "/datastore/"), ("GET", "/datastore/image/info?image=scan0"), ("GET", "/train/"), ("POST", "/activelearning/first"),
    ("GET", "/session/none"), ("POST", "/infer/sam2?image=&session_id=none"),
])  # fmt: skip
def test_lists_and_sessions_have_one_server(proxy, replicas, method, path):
    assert requests.request(method, proxy + path, timeout=60).headers["X-Upstream"] == replicas[0].name


@pytest.mark.parametrize("path", ["/metrics", "/reload"])
def test_what_is_for_operators_only_is_closed(proxy, path):
    assert requests.post(proxy + path, timeout=10).status_code == 403


def test_tls_and_the_clients_address(proxy, tls, certificates, replicas):
    claimed = {"X-Forwarded-For": "10.9.8.7"}
    certificate = str(certificates / "server.crt")
    answer = requests.get(f"https://127.0.0.1:{tls}/sam2/state?image=scan0", headers=claimed, verify=certificate, timeout=30)
    assert answer.ok and "max-age" in answer.headers["Strict-Transport-Security"]
    log = next(r for r in replicas if r.name == answer.headers["X-Upstream"]).log
    wait_until(lambda: "path=/sam2/state status=200" in log.read_text())
    assert "10.9.8.7" not in log.read_text(), "a client must not be able to choose its address"


def test_masks_are_compressed_for_browsers(proxy):
    answer = infer(proxy, "scan0", CLICKS[:1])
    assert len(mask_bytes(answer)) == 40 * 36 * 6 and answer.headers["Content-Encoding"] == "gzip"


def test_a_killed_server_costs_nobody_anything(proxy, replicas, shared, tmp_path):
    """The user's server is killed while it has a request and a label to save, and then starts again."""
    first, second = replicas
    client = slicer_client()(proxy, tmpdir=str(tmp_path), client_id="test")
    image = next(i for i in IMAGES if requests.get(f"{proxy}/sam2/state?image={i}", timeout=30).headers["X-Upstream"] == first.name)
    before, during, after = [i for i in IMAGES if i != image][:3]
    labels = {before: "liver", during: "spleen", after: "kidney"}
    label = np.zeros((40, 36, 6))
    label[10:20, 10:20, 2:4] = 1

    for n in (1, 2):
        answer = infer(proxy, image, CLICKS[:n])
        assert answer.headers["X-Upstream"] == first.name
    expected = mask_bytes(answer)
    assert any(expected)
    rounds = annotated_slices(first.address, image)
    assert rounds == [2, 4] == annotated_slices(second.address, image), "rounds are shared"
    assert submit_label(proxy, before, label, labels[before]).ok
    uploaded = client.create_session(str(shared / "studies" / f"{image}.nii.gz"))["session_id"]

    first.process.send_signal(signal.SIGSTOP)  # busy: it accepts no connection
    connections_before = count_connections(first.port)
    with ThreadPoolExecutor(2) as users:
        inference = users.submit(infer, proxy, image, CLICKS)
        submission = users.submit(submit_label, proxy, during, label, labels[during])
        wait_until(lambda: count_connections(first.port) >= connections_before + 2)
        first.kill()
        inference, submission = inference.result(), submission.result()
    assert inference.headers["X-Upstream"] == submission.headers["X-Upstream"] == f"{first.name}, {second.name}"
    assert mask_bytes(inference) == expected and submission.ok
    assert annotated_slices(proxy, image) == rounds
    assert client.get_session(uploaded)["name"] == uploaded
    assert client.next_sample("first", {})["id"] in IMAGES

    first.start()
    first.wait()
    wait_until(lambda: requests.get(f"{proxy}/datastore/", timeout=30).headers["X-Upstream"] == first.name)
    assert submit_label(proxy, after, label, labels[after]).ok
    wait_until(lambda: submitted_labels(second.address) == labels)
    assert submitted_labels(first.address) == submitted_labels(proxy) == labels
    for i in labels:
        np.testing.assert_array_equal(read_volume(client.download_label(i, "final")).array, label)
    again = infer(proxy, image, CLICKS)
    assert again.headers["X-Upstream"] == first.name and mask_bytes(again) == expected


def test_without_any_server_there_is_a_sentence(tmp_path):
    servers = {f"server{n}:8000": f"127.0.0.1:{free_port()}" for n in (1, 2)}
    for proxy in nginx.run(tmp_path, servers, free_port(), free_port()):
        answer = requests.put(f"{proxy}/datastore/label?image=a", data=b"1", timeout=30)
        assert answer.status_code == 503 and "try again" in answer.json()["detail"] and answer.headers["Retry-After"]

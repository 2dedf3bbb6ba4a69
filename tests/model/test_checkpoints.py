"""Checkpoints are weights only, checked, and found by name, by path and by shape."""

import pickle
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from lib.common.errors import CheckpointError, DownloadError
from lib.model import checkpoints
from lib.model.build import build
from lib.model.download import download

CONTENT = bytes(range(256)) * 1000


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_the_embedded_checkpoint_is_small_and_loads():
    embedded = checkpoints.find("embedded")
    assert embedded.path.stat().st_size <= 16 << 20
    model = checkpoints.load(embedded)
    assert 4e6 <= sum(p.numel() for p in model.parameters()) <= 7e6
    assert model.image_size == 256 and not model.training


@pytest.mark.parametrize("config", ["sam2.1/sam2.1_hiera_t.yaml", "sam2/sam2_hiera_t.yaml"])
def test_official_architectures_build_and_round_trip(tmp_path, config):
    path = tmp_path / "weights.pt"
    torch.save({"model": build(config).state_dict()}, path)
    model = checkpoints.load(checkpoints.find(f"{path}@{config}@512"))
    assert model.image_size == 512


def test_architecture_is_found_by_shape(tmp_path):
    path = tmp_path / "mine.pt"
    torch.save({"model": build("sam2_hiera_nano_256.yaml").state_dict()}, path)
    assert checkpoints.find(path).config == "sam2_hiera_nano_256.yaml"


@pytest.mark.parametrize("make", [
    lambda p: p.write_bytes(b""),
    lambda p: p.write_bytes(b"not a checkpoint"),
    lambda p: p.write_bytes(pickle.dumps({"model": Evil()})),
    lambda p: torch.save({"model": Evil()}, p),
    lambda p: torch.save({"model": {"a": torch.zeros(1), "b": "text"}}, p),
    lambda p: torch.save([1, 2], p),
], ids=["empty", "text", "pickle", "code", "mixed", "list"])  # fmt: skip
def test_anything_but_weights_is_refused(tmp_path, make, capsys):
    path = tmp_path / "bad.pt"
    make(path)
    with pytest.raises(CheckpointError):
        checkpoints.load(checkpoints.find(f"{path}@sam2_hiera_nano_256.yaml@256"))
    assert "code ran" not in capsys.readouterr().out


def test_truncated_safetensors_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoints.EMBEDDED.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        checkpoints.load(checkpoints.find(f"{path}@sam2_hiera_nano_256.yaml@256"))


@pytest.mark.parametrize("rest", ["@nothing.yaml", "@sam2.1/sam2.1_hiera_t.yaml@large", "@sam2.1/sam2.1_hiera_t.yaml@512.5"])
def test_an_unknown_configuration_or_size_is_refused(rest):
    with pytest.raises(CheckpointError, match="configuration"):
        checkpoints.find(f"{checkpoints.EMBEDDED}{rest}")


def test_unknown_and_missing_checkpoints_say_what_to_do():
    with pytest.raises(CheckpointError, match="tiny"):
        checkpoints.find("enormous")
    missing = replace(checkpoints.KNOWN["large"], path=checkpoints.ROOT / "nowhere.pt")
    with pytest.raises(CheckpointError, match="python main.py download large"):
        checkpoints.load(missing)


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; the first answer breaks off in the middle."""

    requests: list = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        Server.requests.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = 100_000 if len(Server.requests) == 1 else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def remote(tmp_path):
    Server.requests = []
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    good = tmp_path / "good"
    good.write_bytes(CONTENT)
    yield checkpoints.Checkpoint(
        "x", "c", 256, tmp_path / "x.pt", f"http://127.0.0.1:{server.server_port}/x.pt", len(CONTENT), checkpoints.sha256(good)
    )
    server.shutdown()


def test_a_broken_download_is_resumed(remote):
    with pytest.raises(DownloadError, match="again to resume"):
        download(remote)
    assert not remote.path.exists()
    assert download(remote).read_bytes() == CONTENT
    assert Server.requests == [None, f"bytes={1 << 16}-"]
    download(remote)  # here already: no further request
    assert len(Server.requests) == 2


def test_a_wrong_file_is_deleted(remote):
    wrong = replace(remote, sha256="0" * 64)
    Server.requests = ["not the first"]
    with pytest.raises(DownloadError, match="SHA-256"):
        download(wrong)
    assert not list(remote.path.parent.glob("x.pt*"))


def test_no_network_gives_a_sentence(tmp_path):
    unreachable = checkpoints.Checkpoint("x", "c", 256, tmp_path / "x.pt", "http://127.0.0.1:9/x.pt")
    with pytest.raises(DownloadError, match="embedded"):
        download(unreachable, timeout=2)

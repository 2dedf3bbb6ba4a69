"""What can be checked of the files in deploy/ without Docker and without systemd running."""

import json
import re
import shutil
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from monailabel.config import Settings

from tests.deploy import nginx
from tests.deploy.nginx import DEPLOY

ROOT = DEPLOY.parent
UNIT = "sam2-monailabel@.service"
SERVERS = ("server1", "server2")


class Loader(yaml.SafeLoader):
    """YAML with Compose's tag `!reset`."""


Loader.add_constructor("!reset", lambda loader, node: "reset")


def compose(name: str = "docker-compose.yml") -> dict:
    return yaml.load((DEPLOY / name).read_text(), Loader)


@pytest.fixture(scope="module")
def services():
    return compose()["services"]


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """Instructions as [name, rest]."""
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def rest(dockerfile, name: str) -> list[str]:
    return [r for n, r in dockerfile if n == name]


def texts() -> str:
    files = [f for f in DEPLOY.iterdir() if f.is_file() and f.suffix != ".md"]
    return "\n".join(f.read_text() for f in files)


def test_only_the_front_is_published_and_on_loopback_by_default(services):
    published = {name: s["ports"] for name, s in services.items() if s.get("ports")}
    assert published == {"front": ["${ADDRESS:-127.0.0.1}:${PORT:-443}:443"]}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_have_a_gpu_and_no_rights(services, name):
    server = services[name]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"] and "no-new-privileges:true" in server["security_opt"]
    assert server["tmpfs"][0].startswith("/tmp:")
    assert server["depends_on"] == {"orthanc": {"condition": "service_healthy"}}


def test_servers_share_their_work_but_not_the_dicom_cache(services, dockerfile):
    first, second = (services[s] for s in SERVERS)
    assert first["volumes"] == second["volumes"] and first["command"] == second["command"]
    caches = {s["environment"]["MONAI_LABEL_DICOMWEB_CACHE_PATH"] for s in (first, second)}
    assert len(caches) == 2 and all(c.startswith("/data/dicom/") for c in caches)
    inside = {v.split(":")[1] for v in first["volumes"]}
    assert inside == set(json.loads(rest(dockerfile, "VOLUME")[0]))
    for place in [c for c in first["command"] if c.startswith("/data/")]:
        assert place in inside, "what is written outside volumes is lost, and the root file system is read-only"


def test_named_volumes_exist_and_the_store_is_kept(services):
    used = {v.split(":")[0] for s in services.values() for v in s["volumes"] if not v.startswith((".", "/"))}
    assert used == set(compose()["volumes"])
    assert "orthanc:/var/lib/orthanc/db" in services["orthanc"]["volumes"]
    assert services["orthanc"]["environment"]["DICOM_WEB_PLUGIN_ENABLED"] == "true"


def test_everything_is_watched_and_started_in_order(services, dockerfile):
    assert services["orthanc"]["healthcheck"]["test"] and services["front"]["healthcheck"]["test"]
    assert "deploy/healthcheck.py" in rest(dockerfile, "HEALTHCHECK")[0]
    assert services["front"]["depends_on"] == {s: {"condition": "service_healthy"} for s in SERVERS}


def test_without_a_gpu_no_device_is_asked_for():
    assert compose("docker-compose.cpu.yml")["services"] == {s: {"deploy": "reset"} for s in SERVERS}


def test_nginx_and_compose_name_the_same_servers():
    groups = re.findall(r"upstream \w+ \{(.*?)\}", (DEPLOY / "nginx.conf").read_text(), re.S)
    assert [re.findall(r"server (\w+):8000", g) for g in groups] == [list(SERVERS)] * 2


def test_what_the_image_copies_is_there(dockerfile):
    ignored = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for copied in rest(dockerfile, "COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} does not reach the builder"
    embedded = "apps/sam2/model/sam2_hiera_nano_256.safetensors"
    assert (ROOT / embedded).is_file() and not any(fnmatch(embedded, i) for i in ignored[1:])


def test_packages_are_installed_before_the_sources_and_nothing_runs_as_root(dockerfile):
    order = [f"{n} {r}" for n, r in dockerfile]
    place = {key: next(i for i, line in enumerate(order) if line.startswith(key)) for key in
             ("COPY requirements.txt", "RUN pip install --no-cache-dir", "COPY lib", "USER", "ENTRYPOINT")}  # fmt: skip
    assert list(place.values()) == sorted(place.values())
    assert rest(dockerfile, "USER") == ["sam2"] and "useradd --uid 10001" in " ".join(rest(dockerfile, "RUN"))
    assert rest(dockerfile, "EXPOSE") == ["8000"]


def test_options_and_settings_exist():
    known = set(re.findall(r'conf\.get\("(\w+)"|--conf (\w+)', (ROOT / "apps/sam2/main.py").read_text()))
    used = set(re.findall(r'--conf"?,?\s+(?:- )?"?([a-z]+)', texts()))
    assert {"versions", "rounds", "cache", "checkpoint", "labels"} <= used <= {name for pair in known for name in pair}
    settings = set(re.findall(r"\bMONAI_LABEL_[A-Z_]+", texts()))
    assert settings and settings <= set(Settings.model_fields)


def test_the_log_goes_to_standard_output():
    config = json.loads((DEPLOY / "logging.json").read_text())
    assert {h["stream"] for h in config["handlers"].values()} == {"ext://sys.stdout"}
    # MONAI Label rewrites the file when the level is another than that of its --verbose, by default INFO.
    assert config["root"]["level"] == "INFO"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status if self.path == "/info/" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status, code", [(200, 0), (401, 0), (403, 0), (500, 1), (503, 1)])
def test_health(status, code):
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        server.status = status
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert health(server.server_port) == code
        finally:
            server.shutdown()
            thread.join()


def test_health_of_nothing():
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        port = server.server_port
    assert health(port) == 1


def health(port: int) -> int:
    return subprocess.run([sys.executable, DEPLOY / "healthcheck.py", f"http://127.0.0.1:{port}"], timeout=20).returncode


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    text = (DEPLOY / UNIT).read_text()
    program = re.search(r"^ExecStart=(\S+)", text, re.M)[1]
    unit = tmp_path / UNIT.replace("@", "@8000")
    unit.write_text(text.replace(f"ExecStart={program}", f"ExecStart={Path(sys.executable)}"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_stays_on_loopback_and_is_restarted():
    text = (DEPLOY / UNIT).read_text()
    wanted = ("Restart=on-failure", "NoNewPrivileges=yes", "ProtectSystem=strict", "User=sam2", "EnvironmentFile=/etc/sam2-monailabel.env")
    for line in wanted:
        assert f"\n{line}\n" in text
    assert re.findall(r"--host (\S+)", text) == ["127.0.0.1"]
    settings = (DEPLOY / "sam2-monailabel.env").read_text()
    assert set(re.findall(r"\$\{?([A-Z]+)\}?", text)) == {"STUDIES", "OPTIONS"} <= set(re.findall(r"^(\w+)=", settings, re.M))


@pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is not installed")
def test_nginx_understands_its_configuration(tmp_path):
    conf = nginx.configure(tmp_path, {"server1:8000": "127.0.0.1:1", "server2:8000": "127.0.0.1:2"}, 8080, 8443)
    done = subprocess.run(nginx.command(conf, "-t"), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "warn" not in done.stderr, done.stderr

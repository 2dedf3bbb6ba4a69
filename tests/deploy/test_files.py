"""Checks of the files in deploy/ that need neither Docker nor a running systemd."""

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


class ComposeLoader(yaml.SafeLoader):
    """A YAML loader that knows Compose's tag `!reset`."""


ComposeLoader.add_constructor("!reset", lambda loader, node: "reset")


def read_compose(name: str = "docker-compose.yml") -> dict:
    return yaml.load((DEPLOY / name).read_text(), ComposeLoader)


@pytest.fixture(scope="module")
def services():
    return read_compose()["services"]


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile as [name, arguments]."""
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def arguments_of(dockerfile, name: str) -> list[str]:
    return [arguments for n, arguments in dockerfile if n == name]


def read_all_files() -> str:
    """Return the text of all files in deploy/ but the Markdown ones."""
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
    assert inside == set(json.loads(arguments_of(dockerfile, "VOLUME")[0]))
    for path in [c for c in first["command"] if c.startswith("/data/")]:
        assert path in inside, "what is written outside volumes is lost, and the root file system is read-only"


def test_named_volumes_exist_and_the_store_is_kept(services):
    used = {v.split(":")[0] for s in services.values() for v in s["volumes"] if not v.startswith((".", "/"))}
    assert used == set(read_compose()["volumes"])
    assert "orthanc:/var/lib/orthanc/db" in services["orthanc"]["volumes"]
    assert services["orthanc"]["environment"]["DICOM_WEB_PLUGIN_ENABLED"] == "true"


def test_services_have_health_checks_and_start_in_order(services, dockerfile):
    assert services["orthanc"]["healthcheck"]["test"] and services["front"]["healthcheck"]["test"]
    assert "deploy/healthcheck.py" in arguments_of(dockerfile, "HEALTHCHECK")[0]
    assert services["front"]["depends_on"] == {s: {"condition": "service_healthy"} for s in SERVERS}


def test_without_a_gpu_no_device_is_requested():
    assert read_compose("docker-compose.cpu.yml")["services"] == {s: {"deploy": "reset"} for s in SERVERS}


def test_nginx_and_compose_name_the_same_servers():
    groups = re.findall(r"upstream \w+ \{(.*?)\}", (DEPLOY / "nginx.conf").read_text(), re.S)
    assert [re.findall(r"server (\w+):8000", g) for g in groups] == [list(SERVERS)] * 2


def test_the_files_that_the_image_copies_exist(dockerfile):
    ignored = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for copied in arguments_of(dockerfile, "COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} does not reach the builder"
    embedded = "apps/sam2/model/sam2_hiera_nano_256.safetensors"
    assert (ROOT / embedded).is_file() and not any(fnmatch(embedded, i) for i in ignored[1:])


def test_packages_are_installed_before_the_sources_and_nothing_runs_as_root(dockerfile):
    order = [f"{name} {arguments}" for name, arguments in dockerfile]
    positions = {key: next(i for i, line in enumerate(order) if line.startswith(key)) for key in
             ("COPY requirements.txt", "RUN pip install --no-cache-dir", "COPY lib", "USER", "ENTRYPOINT")}  # fmt: skip
    assert list(positions.values()) == sorted(positions.values())
    assert arguments_of(dockerfile, "USER") == ["sam2"] and "useradd --uid 10001" in " ".join(arguments_of(dockerfile, "RUN"))
    assert arguments_of(dockerfile, "EXPOSE") == ["8000"]


def test_options_and_settings_exist():
    existing = set(re.findall(r'conf\.get\("(\w+)"|--conf (\w+)', (ROOT / "apps/sam2/main.py").read_text()))
    used = set(re.findall(r'--conf"?,?\s+(?:- )?"?([a-z]+)', read_all_files()))
    assert {"versions", "rounds", "cache", "checkpoint", "labels"} <= used <= {name for pair in existing for name in pair}
    settings = set(re.findall(r"\bMONAI_LABEL_[A-Z_]+", read_all_files()))
    assert settings and settings <= set(Settings.model_fields)


def test_the_log_goes_to_standard_output():
    config = json.loads((DEPLOY / "logging.json").read_text())
    assert {h["stream"] for h in config["handlers"].values()} == {"ext://sys.stdout"}
    # MONAI Label rewrites the file if its level differs from --verbose, which is INFO by default.
    assert config["root"]["level"] == "INFO"


class StatusHandler(BaseHTTPRequestHandler):
    """Answers /info/ with the status that the server has as an attribute."""

    def do_GET(self):
        self.send_response(self.server.status if self.path == "/info/" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status, code", [(200, 0), (401, 0), (403, 0), (500, 1), (503, 1)])
def test_the_health_check_reports_the_status(status, code):
    with HTTPServer(("127.0.0.1", 0), StatusHandler) as server:
        server.status = status
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert run_health_check(server.server_port) == code
        finally:
            server.shutdown()
            thread.join()


def test_the_health_check_fails_without_a_server():
    with HTTPServer(("127.0.0.1", 0), StatusHandler) as server:
        port = server.server_port
    assert run_health_check(port) == 1


def run_health_check(port: int) -> int:
    """Return the exit status of deploy/healthcheck.py."""
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
    expected_lines = ("Restart=on-failure", "NoNewPrivileges=yes", "ProtectSystem=strict", "User=sam2", "EnvironmentFile=/etc/sam2-monailabel.env")
    for line in expected_lines:
        assert f"\n{line}\n" in text
    assert re.findall(r"--host (\S+)", text) == ["127.0.0.1"]
    settings = (DEPLOY / "sam2-monailabel.env").read_text()
    assert set(re.findall(r"\$\{?([A-Z]+)\}?", text)) == {"STUDIES", "OPTIONS"} <= set(re.findall(r"^(\w+)=", settings, re.M))


@pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is not installed")
def test_nginx_understands_its_configuration(tmp_path):
    conf = nginx.write_configuration(tmp_path, {"server1:8000": "127.0.0.1:1", "server2:8000": "127.0.0.1:2"}, 8080, 8443)
    done = subprocess.run(nginx.command(conf, "-t"), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "warn" not in done.stderr, done.stderr

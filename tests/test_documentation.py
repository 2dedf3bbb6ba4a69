"""README.md and docs/ as a user reads them: every shell command is run as it stands there, or has a reason in `NOT_RUN` why not.

The commands of a fenced block (bash, sh or console) run in one shell without an activated environment, in a copy of the repository's files
whose .venv leads to the running environment. Only ports are changed: servers get free ones where their command takes a port.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from lib.samples.sample_data import make_samples
from lib.serving.launch import wait_for
from tests.documented_commands import API_BLOCK, API_PAGE, BLOCKS, ROOT, SERVER_WORDS, Block
from tests.serving.processes import free_port


def parameters(blocks) -> list:
    """Return pytest parameters; those that need a server are marked."""
    return [
        pytest.param(b, id=f"{b.page}:{b.line}", marks=[pytest.mark.server] if b.starts_server or b.asks_server else []) for b in blocks
    ]


class Shell:
    """A user's shell in a copy of the repository, without an activated environment.

    Attributes:
        folder: Where commands run.
        environment: Their environment variables.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        scripts = Path(sys.prefix, "bin").resolve()
        path = [p for p in os.environ.get("PATH", "").split(os.pathsep) if p and Path(p).resolve() != scripts]
        hidden = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": os.pathsep.join(path)}
        self._servers: dict[Block, tuple[str, subprocess.Popen]] = {}

    def run(self, commands) -> str:
        """Run commands one after the other and return what they print; any that fails is an error."""
        script = "set -eo pipefail\n" + "\n".join(commands)
        options = {"cwd": self.folder, "env": self.environment, "text": True, "timeout": 300}
        done = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}"
        return done.stdout

    def start(self, block: Block) -> str:
        """Run a block whose last command is a server, unless it runs already, and return the address when it answers."""
        if block not in self._servers:
            *before, last = block.runnable
            port = 8000
            if not last.startswith("make "):
                port = free_port()
                last = re.sub(r"\s--port \d+", "", last) + f" --port {port}"
            log = self.folder.parent / f"server_{port}.txt"
            options = {"cwd": self.folder, "env": self.environment, "stderr": subprocess.STDOUT, "start_new_session": True}
            with open(log, "w") as output:
                process = subprocess.Popen(["bash", "-c", "\n".join(["set -e", *before, last])], stdout=output, **options)
            self._servers[block] = f"http://127.0.0.1:{port}", process
            wait_for(f"http://127.0.0.1:{port}/info/", process, log=log)
        return self._servers[block][0]

    def stop(self, block: Block) -> None:
        """End a server and all that it has started."""
        _, process = self._servers.pop(block)
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass

    def stop_all(self) -> None:
        for block in list(self._servers):
            self.stop(block)


def copy_repository(folder: Path) -> None:
    """Copy the files that git knows or would know, and link the running environment as .venv.

    The folder .venv is a new one with links, and with the file by which the Makefile recognises a complete environment: no command of a
    page can change the running environment by `make`.
    """
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    names = [os.fsdecode(n) for n in listed.stdout.split(b"\0") if n]
    if listed.returncode != 0:
        pytest.skip("This is no git checkout, so nobody knows which files belong to the project.")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".installed").touch()


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documentation") / "checkout"
    folder.mkdir()
    copy_repository(folder)
    make_samples(folder / "sample-data")
    shell = Shell(folder)
    yield shell
    shell.stop_all()


@pytest.mark.parametrize("block", parameters(b for b in BLOCKS if b.runnable and not b.starts_server and not b.asks_server))
def test_commands_run_as_they_stand(shell, block):
    shell.run(block.runnable)


@pytest.mark.parametrize("block", parameters(b for b in BLOCKS if b.asks_server))
def test_commands_that_ask_a_server(shell, block):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed.")
    port = shell.start(API_BLOCK).rpartition(":")[2]
    output = shell.run([c.replace("curl ", "curl --fail-with-body -sS ", 1).replace("127.0.0.1:8000", f"127.0.0.1:{port}") for c in block.runnable])
    assert output or any(" -o " in c for c in block.runnable)


@pytest.mark.server
def test_answers_have_the_fields_that_the_page_lists(shell):
    section = (ROOT / API_PAGE).read_text().partition("## What does the server answer?")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    form = {"params": '{"foreground": [[48, 84, 50]], "label": "liver", "result_crop": true}'}  # With each field that is only there on request.
    answer = requests.post(f"{shell.start(API_BLOCK)}/infer/sam2?image=ct_phantom&output=json", data=form, timeout=120).json()
    assert listed == set(answer)
    named = set(re.findall(r"`(\w+)`", next(line for line in section.splitlines() if line.startswith("| `latencies`"))))
    assert set(answer["latencies"]) == named - {"latencies"}


@pytest.mark.parametrize("block", parameters(sorted((b for b in BLOCKS if b.starts_server), key=lambda b: b != API_BLOCK)))
def test_servers_start_as_they_stand(shell, block):
    assert not any(word in c for c in block.runnable[:-1] for word in SERVER_WORDS), "the command that starts the server comes last"
    if "make serve" in block.runnable[-1] and not is_free(8000):
        pytest.skip("Something else uses port 8000, which `make serve` needs.")
    address = shell.start(block)
    try:
        assert {"sam2", "sam2_slice", "sam2_scribbles"} <= set(requests.get(f"{address}/info/", timeout=30).json()["models"])
        assert requests.get(f"{address}/sam2/", timeout=30).ok
    finally:
        shell.stop(block)


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port of this machine."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0

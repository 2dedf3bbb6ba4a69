"""README.md and docs/ as a user reads them: every shell command is run as it stands there, or listed here with the reason why not.

The commands of a fenced block (bash, sh or console) run in one shell without an activated environment, in a copy of the repository's files
whose .venv leads to the running environment. Only ports are changed: servers get free ones where their command takes a port.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from lib.samples.sample_data import make_samples
from lib.serving.launch import wait_for
from main import _parser
from tests.serving.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("bash", "sh", "console")
OTHER_LANGUAGES = ("text", "mermaid", "json", "python")
API_PAGE = "docs/http_api.md"  # The commands with curl on all pages ask the server that is started here.
SERVER_WORDS = ("make serve", "main.py serve", "start_server")

_OTHER_PATHS = "has made-up paths; the same command is run on other files"
_DOCKER = "needs Docker; tests/deploy/test_files.py checks the files"
_ORTHANC = "needs a running DICOM store; tests/serving/test_ohif.py starts one"
_HISTORY = "needs a label in the history; tests/serving/datastore/test_label_history.py restores one"
_TRAINING = "takes hours; tests/training/test_loop.py runs a short training"
_FINE_TUNING = "takes half a minute or more; tests/training/test_fine_tuning.py runs it on small volumes"
_EVALUATION = "takes minutes; tests/evaluation/protocols runs the protocols on small volumes"
_BENCHMARK = "takes minutes"
_MAIN = ".venv/bin/python main.py"
NOT_RUN = {
    "make test": "is this very suite",
    f"{_MAIN} download tiny": "downloads 156 MB; tests/model/test_checkpoints.py downloads from a server of its own",
    f"{_MAIN} serve --studies sample-data/nifti --conf checkpoint tiny": "needs a downloaded checkpoint",
    f"{_MAIN} segment ct.nii.gz --point 80,62,40 -o mask.nii.gz --checkpoint my.pt@sam2.1/sam2.1_hiera_t.yaml@512": _OTHER_PATHS,
    f"{_MAIN} calibrate --checkpoint tiny --data sample-data": "needs a downloaded checkpoint; tests/training/test_estimator_calibration.py fits",
    f"{_MAIN} finetune --data sample-data --epochs 1 --steps 5": _FINE_TUNING,
    f"{_MAIN} finetune --data /data/Task09_Spleen --checkpoint tiny --parts lora": _FINE_TUNING,
    f"{_MAIN} labels --studies DIR --image ID --restore NAME": _HISTORY,
    'curl -X POST "http://127.0.0.1:8000/sam2/labels/ct_phantom/restore?name=NAME"': _HISTORY,
    f"{_MAIN} train --data runs/packed --minutes 1200 --out runs/next": _TRAINING,
    f"{_MAIN} train --data runs/packed --minutes 9 --device cuda --compile --out runs/gpu": "needs a GPU",
    ".venv/bin/torchrun --nproc-per-node=4 main.py train --data runs/packed --minutes 60 --device cuda --out runs/four_gpus": "needs GPUs",
    f"{_MAIN} calibrate --checkpoint runs/next/model.safetensors --ends": "needs the training before",
    f"{_MAIN} evaluate --protocol he --mode described --data sample-data --labels liver --out runs/he": _EVALUATION,
    f"{_MAIN} evaluate --protocol dong --mode published --data DIR --labels liver --limit 5 --out runs/dong": _EVALUATION,
    f"{_MAIN} evaluate --protocol rounds --strategy estimator --data DIR --out runs/rounds": _EVALUATION,
    f"{_MAIN} evaluate --protocol rounds --data DIR --method app,official,builtin --out runs/compared": _EVALUATION,
    f"{_MAIN} evaluate --protocol cvpr25 --data DIR --method app,official,builtin,classical --out runs/cvpr25": _EVALUATION,
    f"{_MAIN} evaluate --protocol isvalidate --data DIR --method app,official,builtin,classical --out runs/clicks": _EVALUATION,
    f"{_MAIN} evaluate --protocol isvalidate --edits 100 --data /data/Task03_Liver --method app,classical --out runs/clicks100": _EVALUATION,
    f"{_MAIN} evaluate --protocol rounds --settings painted --data DIR --method app,classical,fill --out runs/painted": _EVALUATION,
    f"{_MAIN} evaluate --protocol shen --data /data/Task09_Spleen --download --method official --out runs/shen_spleen": "downloads 1.5 GB",
    ".venv/bin/python -m pip install -r requirements-ray.txt": "changes the environment",
    f"{_MAIN} evaluate --protocol he --data DIR --engine ray --address auto --out runs/he_cluster": "needs a cluster",
    ".venv/bin/python benchmarks/accuracy.py --data sample-data": _BENCHMARK,
    ".venv/bin/python benchmarks/accuracy.py --data DIR OTHER_DIR --engines app,classical --json rows.json --resume": _BENCHMARK,
    ".venv/bin/python benchmarks/latency.py --cases icbm": _BENCHMARK,
    ".venv/bin/python benchmarks/next_slice.py --data sample-data": _BENCHMARK,
    f"{_MAIN} serve --studies http://127.0.0.1:8042/dicom-web": _ORTHANC,
    "monailabel start_server --app apps/sam2 --studies http://127.0.0.1:8042/dicom-web --host 127.0.0.1": _ORTHANC,
    "docker compose -f deploy/docker-compose.yml up -d --build": _DOCKER,
    "docker compose -f deploy/docker-compose.yml -f deploy/docker-compose.cpu.yml up -d --build": _DOCKER,
    "docker run --gpus all -p 127.0.0.1:8000:8000 -v /data/my_volumes:/data/studies sam2-monailabel": _DOCKER,
    "docker compose -f deploy/docker-compose.yml stop orthanc": _DOCKER,
    "docker run --rm -v sam2_orthanc:/o:ro -v /backup:/b debian:12 tar czf /b/orthanc.tgz -C /o .": _DOCKER,
    "docker compose -f deploy/docker-compose.yml start orthanc": _DOCKER,
    "systemctl enable --now sam2-monailabel@8000": "needs root and systemd; tests/deploy/test_files.py runs what the unit starts",
    ".venv/bin/python -m pip install -e . --no-deps": "changes the environment; tests/test_packaging.py checks the metadata",
}


_JSON_SLICE_DICE = """-H 'Content-Type: application/json' -d '{"y_pred": "session"}'"""
NOT_RUN[f"curl -X POST http://127.0.0.1:8000/scoring/slice_dice {_JSON_SLICE_DICE}"] = (
    "is refused while the scoring before it runs; tests/serving/active_learning/test_strategies.py runs both"
)


@dataclass(frozen=True)
class Block:
    """The shell commands of one fenced block.

    Attributes:
        page: Path of the page, relative to the repository.
        line: Where the block begins.
        commands: One entry for each command, with continued lines joined and comments removed.
    """

    page: str
    line: int
    commands: tuple[str, ...]

    @property
    def runnable(self) -> tuple[str, ...]:
        """The commands that are run here."""
        return tuple(c for c in self.commands if c not in NOT_RUN)

    @property
    def starts_server(self) -> bool:
        return any(word in c for c in self.runnable for word in SERVER_WORDS)

    @property
    def asks_server(self) -> bool:
        return any(c.startswith("curl ") for c in self.runnable)


def fenced_blocks(page: Path) -> list[tuple[int, str, str]]:
    """Return (line, language, text) of the fenced blocks of a page."""
    text = page.read_text()
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start()].count("\n") + 1, m[1].strip(), m[2]) for m in found]


def commands_of(language: str, text: str) -> tuple[str, ...]:
    """Return the commands of a block; in a console block they begin with "$ ", and the other lines are output."""
    lines = text.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    lines = [re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in lines]
    return tuple(line for line in lines if line)


def shell_blocks() -> list[Block]:
    """Return the blocks with shell commands; of blocks that are shown twice only one, that of the page of the HTTP API if it is there."""
    blocks = [
        Block(str(page.relative_to(ROOT)), line, commands_of(language, text))
        for page in PAGES for line, language, text in fenced_blocks(page) if language in SHELLS
    ]  # fmt: skip
    return list({b.commands: b for b in sorted(blocks, key=lambda b: b.page == API_PAGE)}.values())


BLOCKS = shell_blocks()
API_BLOCK = next(b for b in BLOCKS if b.page == API_PAGE and b.starts_server)


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
    form = {"params": '{"foreground": [[48, 84, 50]], "label": "liver"}'}
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


def test_the_table_names_only_commands_that_are_shown():
    shown = {c for block in BLOCKS for c in block.commands}
    assert not set(NOT_RUN) - shown, "no page shows these commands any more"


def test_reasons_name_tests_that_exist():
    named = {m for reason in NOT_RUN.values() for m in re.findall(r"tests/[\w/]+(?:\.py)?", reason)}
    assert named and all((ROOT / name).exists() for name in named), named


def test_every_block_says_its_language():
    found = {(page.name, line, language) for page in PAGES for line, language, _ in fenced_blocks(page)}
    assert not {f for f in found if f[2] not in (*SHELLS, *OTHER_LANGUAGES)}
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.lstrip().startswith(("```", "~~~"))]
        assert len(fences) == 2 * len(fenced_blocks(page)), f"{page.name} has a block that this test does not see"


def test_commands_that_are_not_run_have_arguments_that_exist():
    for command in NOT_RUN:
        words = shlex.split(command)
        if "main.py" in words:
            _parser().parse_args(words[words.index("main.py") + 1 :])
        elif (script := next((w for w in words if w.startswith("benchmarks/")), None)) is not None:
            text = (ROOT / script).read_text()
            assert all(f'"{w}"' in text for w in words if w.startswith("--")), command


def test_settings_and_targets_that_the_pages_name_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"[`\n]make ([a-z][\w-]*)", text)) <= targets
    known = set(re.findall(r"conf\.get\(\"(\w+)\"", (ROOT / "apps/sam2/main.py").read_text()))
    known |= set(re.findall(r"--conf (\w+)", (ROOT / "apps/sam2/main.py").read_text()))
    named = set(re.findall(r"--conf (\w+)", text)) - {"KEY"}
    assert named <= known, named - known
    options = (ROOT / "docs/options.md").read_text()
    assert all(f"`{key}`" in options for key in known), "docs/options.md lists all settings"


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:lib|tests|benchmarks|deploy|docs)/[\w./@-]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists() or name == "deploy/.env", f"{page.name}: {name}"


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading.

    >>> anchor_of("How do I run it: twice?")
    'how-do-i-run-it-twice'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "sample-data" / "README.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, headings), link


def test_the_readme_is_short_and_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert all(f"(docs/{page.name}" in readme for page in PAGES[1:])


def test_pages_are_written_by_task():
    for page in PAGES[1:]:
        headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        assert all(h.endswith("?") for h in headings), (page.name, headings)


def test_no_page_names_a_path_of_a_developer():
    for page in PAGES:
        assert not re.search(r"/(work|home|Users|tmp)/", page.read_text()), page.name

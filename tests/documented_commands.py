"""The shell commands of README.md and docs/, and why some of them are not run by the tests."""

import re
from dataclasses import dataclass
from pathlib import Path

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
    f"{_MAIN} train-corrections --labelled LABELLED --unlabelled IMAGES --minutes 240 --out runs/corrections": "takes hours; "
    "tests/training/test_correction_training.py runs a short training",
    f"{_MAIN} train-corrections --generated 4 --minutes 0.2 --out runs/corrections_try": "tests/training/test_correction_training.py runs it",
    f"{_MAIN} train-tracking --labelled LABELLED --unlabelled IMAGES --minutes 240 --out runs/tracking": "takes hours; "
    "tests/training/test_tracking_training.py runs a short training",
    f"{_MAIN} train-tracking --generated 4 --minutes 0.2 --out runs/tracking_try": "tests/training/test_tracking_training.py runs it",
    f"{_MAIN} train-volume --labelled LABELLED --unlabelled IMAGES --minutes 240 --out runs/volume": "takes hours; "
    "tests/training/test_volume_training.py runs a short training",
    f"{_MAIN} train-volume --generated 4 --minutes 0.2 --out runs/volume_try": "tests/training/test_volume_training.py runs it",
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

"""Measure how a server does under several annotators: Locust simulates 1, 4 and 16 of them and checks every mask.

Each annotator asks for the *Next Sample*, clicks on a structure of one of four generated volumes, corrects the mask twice on the
slices where most is wrong, and sometimes saves it. One additional client asks /info/ five times a second. Beforehand every request is
made once while nobody else uses the server; a mask that differs under load is counted as wrong. Each stage starts a new server, so
that its volumes must be encoded, too.

Locust has an environment of its own, build/load-venv, which is made from benchmarks/requirements-load.txt when it is missing.

examples:
  python benchmarks/load.py
  python benchmarks/load.py --clients 1,8 --seconds 20 --json load.json
"""

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.imaging.frames import Frames  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.samples import phantom  # noqa: E402
from lib.serving.launch import start_monailabel, stop, wait_for  # noqa: E402
from tests.serving.processes import free_port  # noqa: E402

logger = logging.getLogger("load")
VENV = ROOT / "build" / "load-venv"
STRUCTURES, ROUNDS = ("liver", "spleen", "vertebra"), 3
RESULT_PARAMS = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "device": "cpu"}
BUSY_STATUSES = (429, 503)


def install_locust() -> Path:
    """Return the path of the program locust, after installing it if needed."""
    program, requirements = VENV / "bin" / "locust", ROOT / "benchmarks" / "requirements-load.txt"
    installed = VENV / "made-from.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        installed.write_text(requirements.read_text())
    return program


def make_volumes(count: int, shape) -> dict:
    """Return {name: (volume, labels)} of generated patients of 352 x 352 x 240 mm with the given number of voxels per axis."""
    spacing_mm = [mm / n for mm, n in zip((352, 352, 240), shape, strict=True)]
    return {f"phantom_{seed}": phantom.abdomen(seed, shape, spacing_mm) for seed in range(300, 300 + count)}


@contextmanager
def run_server(volumes: dict, folder: Path, conf) -> Iterator[str]:
    """Run a new server on copies of the volumes; the value is its address."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    for name, (volume, _) in volumes.items():
        nib.save(nib.Nifti1Image(volume.array, volume.affine), studies / f"{name}.nii.gz")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    conf = [("versions", str(folder / "versions")), *conf]
    process = start_monailabel(str(studies), "127.0.0.1", port, conf)
    try:
        wait_for(f"{address}/info/", process)
        yield address
    finally:
        stop([process])


def plan_annotations(address: str, volumes: dict) -> dict:
    """Return {image: [steps of a structure, ...]}, from requests made one after another; for a step see `annotation_steps`."""
    plan = {}
    for name, (volume, labels) in tqdm(volumes.items(), desc="alone"):
        frames = Frames.of(volume)
        references = {label: frames.from_volume(labels == phantom.LABELS[label]) for label in STRUCTURES}
        plan[name] = [
            annotation_steps(address, name, label, frames, reference) for label, reference in references.items() if reference.any()
        ]
    return plan


def annotation_steps(address: str, image: str, label: str, frames: Frames, reference: np.ndarray) -> list[dict]:
    """Annotate up to ROUNDS slices of a structure: first the largest one, then always the one where most is wrong.

    Args:
        reference: The structure's reference mask, bool (T, Y, X).

    Returns:
        {"params": those of the request, "digest": that of the mask} of each step.
    """
    prompts, steps, annotated = {"foreground": [], "background": [], "absent": []}, [], []
    displayed_mask = np.zeros_like(reference)
    t = simulated_annotator.largest_slice(reference)
    while len(steps) < ROUNDS:
        click = simulated_annotator.corrective_click(displayed_mask[t], reference[t])
        if click is None:
            break
        annotated.append(t)
        if reference[t].any():
            prompts["foreground" if click[0] else "background"].append([int(v) for v in frames.to_voxel(t, *click[1:])])
        else:
            prompts["absent"].append(t)
        params = json.loads(json.dumps({**RESULT_PARAMS, "label": label, **prompts}))  # A copy, as the lists go on growing.
        answer = requests.post(f"{address}/infer/sam2?image={image}&output=image", data={"params": json.dumps(params)}, timeout=600)
        answer.raise_for_status()
        voxels = answer.content.partition(b"\n\n")[2]  # The header before them holds the time.
        steps.append({"params": params, "digest": hashlib.blake2b(voxels, digest_size=16).hexdigest()})
        displayed_mask = frames.from_volume(np.frombuffer(voxels, np.uint8).reshape(frames.volume.shape, order="F") > 0)
        wrong_pixels = (displayed_mask ^ reference).sum((1, 2))
        wrong_pixels[annotated] = 0
        t = int(wrong_pixels.argmax())
    return steps


def run_stage(address: str, plan: dict, clients: int, seconds: int, folder: Path) -> list[list]:
    """Let some annotators work for some seconds and return a row for each request.

    Returns:
        Rows [kind of request, milliseconds, status, whether the mask is wrong, message].
    """
    plan_file, out = folder / "plan.json", folder / "requests.json"
    plan_file.write_text(json.dumps(plan))
    command = [install_locust(), "-f", ROOT / "benchmarks" / "locustfile.py", "--headless", "--host", address, "--only-summary"]
    command += ["--loglevel", "WARNING", "-u", str(clients + 1), "-r", str(clients + 1), "-t", f"{seconds}s", "--stop-timeout", "300"]
    with open(folder / "locust.log", "w") as log:
        environment = {**os.environ, "LOAD_PLAN": str(plan_file), "LOAD_OUT": str(out)}
        # The exit status is not checked: it is 1 when any request failed, and failed requests are counted below.
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=seconds + 400)
    if not out.exists():
        sys.exit(f"locust did not run:\n{(folder / 'locust.log').read_text()[-2000:]}")
    return json.loads(out.read_text())


def summarize(rows: list[list], clients: int) -> dict:
    """Return the figures of a stage: counts, and percentiles in seconds of the answers with a mask and of all answers of /info/."""
    infer = [ms / 1000 for kind, ms, status, *_ in rows if kind == "infer" and status == 200]
    info = [ms / 1000 for kind, ms, *_ in rows if kind == "info"]
    failed = Counter(
        f"{kind}: {message}" for kind, _, status, wrong, message in rows if message and not wrong and status not in BUSY_STATUSES
    )
    return {
        "clients": clients, "requests": sum(kind != "info" for kind, *_ in rows), "masks": len(infer),
        **{f"infer_p{q}": float(np.percentile(infer, q)) if infer else None for q in (50, 95, 99)},
        **{f"info_p{q}": float(np.percentile(info, q)) if info else None for q in (50, 99)},
        "wrong": sum(r[3] for r in rows), "errors": sum(failed.values()), "full": sum(r[2] in BUSY_STATUSES for r in rows),
        "messages": dict(failed.most_common(5)),
    }  # fmt: skip


def format_table(stages: list[dict]) -> str:
    """Return the figures of all stages as a Markdown table."""
    head = ("clients", "requests", "masks", "infer p50", "p95", "p99", "`/info/` p50", "p99", "wrong masks", "errors", "429/503")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for r in stages:
        times = [f"{r[k]:.2f} s" if r[k] is not None else "-" for k in ("infer_p50", "infer_p95", "infer_p99")]
        times += [f"{1000 * r[k]:.0f} ms" if r[k] is not None else "-" for k in ("info_p50", "info_p99")]
        lines.append("| " + " | ".join([*(str(r[k]) for k in head[:3]), *times, *(str(r[k]) for k in ("wrong", "errors", "full"))]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Read the options, run all stages and print the table; return 1 if a mask was wrong, a request failed or a stage got no mask."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", default="1,4,16", help="numbers of simultaneous annotators, one stage each (default: %(default)s)")
    p.add_argument("--seconds", type=int, default=60, help="duration of each stage (default: %(default)s)")
    p.add_argument("--think", type=float, default=1.0, help="seconds for which an annotator looks at a mask (default: %(default)s)")
    p.add_argument("--volumes", type=int, default=4, help="number of volumes (default: %(default)s)")
    p.add_argument("--shape", default="96,96,40", help="voxels of each volume (default: %(default)s)")
    p.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="passed to the server")
    p.add_argument("--json", type=Path, help="file to which the figures are written")
    a = p.parse_args()
    install_locust()
    volumes = make_volumes(a.volumes, tuple(int(n) for n in a.shape.split(",")))
    stages = []
    with tempfile.TemporaryDirectory(prefix="load_") as temporary:
        with run_server(volumes, Path(temporary, "alone"), a.conf) as address:
            plan = {"volumes": plan_annotations(address, volumes), "think": a.think}
        for clients in map(int, a.clients.split(",")):
            folder = Path(temporary, str(clients))
            with run_server(volumes, folder, a.conf) as address:
                stages.append(summarize(run_stage(address, plan, clients, a.seconds, folder), clients))
            logger.info("%s", stages[-1])
    if a.json:
        a.json.write_text(json.dumps(stages, indent=1))
    sys.stdout.write(format_table(stages) + "\n")
    return int(any(r["wrong"] or r["errors"] or not r["masks"] for r in stages))


if __name__ == "__main__":
    sys.exit(main())

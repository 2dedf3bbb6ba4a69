"""How does a server do under several annotators? Locust drives 1, 4 and 16 of them; every mask is compared with the one got alone.

Each annotator asks *Next Sample*, clicks on a structure of one of four generated volumes, corrects the mask twice on the slices that
the server names, and sometimes saves it; one more client asks /info/ five times a second. Beforehand every request was made once
while nobody else asked: another mask under load is a wrong one. Each stage has a fresh server, so its volumes must be encoded, too.

Locust has an environment of its own, build/load-venv, made from benchmarks/requirements-load.txt when it is missing.

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
from lib.samples import phantom
from lib.serving.launch import free_port, start_monailabel, stop, wait_for  # noqa: E402

logger = logging.getLogger("load")
VENV = ROOT / "build" / "load-venv"
STRUCTURES, ROUNDS = ("liver", "spleen", "vertebra"), 3
PARAMS = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "device": "cpu"}
FULL = (429, 503)


def locust() -> Path:
    """The program, installed if needed."""
    program, wanted = VENV / "bin" / "locust", ROOT / "benchmarks" / "requirements-load.txt"
    made = VENV / "made-from.txt"
    if not made.exists() or made.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        made.write_text(wanted.read_text())
    return program


def make_volumes(count: int, shape) -> dict:
    """{name: (volume, labels)} of generated patients, 352 x 352 x 240 mm."""
    sizes = [mm / n for mm, n in zip((352, 352, 240), shape, strict=True)]
    return {f"phantom_{seed}": phantom.abdomen(seed, shape, sizes) for seed in range(300, 300 + count)}


@contextmanager
def server(volumes: dict, folder: Path, conf):
    """Address of a new server on copies of the volumes."""
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


def alone(address: str, volumes: dict) -> dict:
    """{image: for each structure the steps {params, digest}}, asked one after another."""
    plan = {}
    for name, (volume, labels) in tqdm(volumes.items(), desc="alone"):
        frames = Frames.of(volume)
        references = {label: frames.from_volume(labels == phantom.LABELS[label]) for label in STRUCTURES}
        plan[name] = [steps_on(address, name, label, frames, reference) for label, reference in references.items() if reference.any()]
    return plan


def steps_on(address: str, image: str, label: str, frames: Frames, reference: np.ndarray) -> list[dict]:
    """Up to ROUNDS annotated slices of a structure, bool (T, Y, X): the largest, then where most is wrong."""
    prompts, steps, seen, shown = {"positive": [], "negative": [], "absent": []}, [], [], np.zeros_like(reference)
    t = simulated_annotator.largest_slice(reference)
    while len(steps) < ROUNDS:
        click = simulated_annotator.corrective_click(shown[t], reference[t])
        if click is None:
            break
        seen.append(t)
        if reference[t].any():
            prompts["positive" if click[0] else "negative"].append([int(v) for v in frames.to_voxel(t, *click[1:])])
        else:
            prompts["absent"].append(t)
        named = {"foreground": prompts["positive"], "background": prompts["negative"], "absent": prompts["absent"]}
        params = json.loads(json.dumps({**PARAMS, "label": label, **named}))  # a copy
        answer = requests.post(f"{address}/infer/sam2?image={image}&output=image", data={"params": json.dumps(params)}, timeout=600)
        answer.raise_for_status()
        voxels = answer.content.partition(b"\n\n")[2]  # behind the header, which holds the time
        steps.append({"params": params, "digest": hashlib.blake2b(voxels, digest_size=16).hexdigest()})
        shown = frames.from_volume(np.frombuffer(voxels, np.uint8).reshape(frames.volume.shape, order="F") > 0)
        wrong = (shown ^ reference).sum((1, 2))
        wrong[seen] = 0
        t = int(wrong.argmax())
    return steps


def stage(address: str, plan: dict, clients: int, seconds: int, folder: Path) -> list[list]:
    """Rows [what, milliseconds, status, wrong mask, message] of what `clients` annotators asked within that time."""
    plan_file, out = folder / "plan.json", folder / "requests.json"
    plan_file.write_text(json.dumps(plan))
    command = [locust(), "-f", ROOT / "benchmarks" / "locustfile.py", "--headless", "--host", address, "--only-summary"]
    command += ["--loglevel", "WARNING", "-u", str(clients + 1), "-r", str(clients + 1), "-t", f"{seconds}s", "--stop-timeout", "300"]
    with open(folder / "locust.log", "w") as log:  # its exit status is 1 when any request failed: those are counted here
        environment = {**os.environ, "LOAD_PLAN": str(plan_file), "LOAD_OUT": str(out)}
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=seconds + 400)
    if not out.exists():
        sys.exit(f"locust did not run:\n{(folder / 'locust.log').read_text()[-2000:]}")
    return json.loads(out.read_text())


def summary(rows: list[list], clients: int) -> dict:
    """The figures of a stage; times in seconds, of answers with a mask, and of all of /info/."""
    infer = [ms / 1000 for what, ms, status, *_ in rows if what == "infer" and status == 200]
    info = [ms / 1000 for what, ms, *_ in rows if what == "info"]
    failed = Counter(f"{what}: {text}" for what, _, status, wrong, text in rows if text and not wrong and status not in FULL)
    return {
        "clients": clients, "requests": sum(what != "info" for what, *_ in rows), "masks": len(infer),
        **{f"infer_p{q}": float(np.percentile(infer, q)) if infer else None for q in (50, 95, 99)},
        **{f"info_p{q}": float(np.percentile(info, q)) if info else None for q in (50, 99)},
        "wrong": sum(r[3] for r in rows), "errors": sum(failed.values()), "full": sum(r[2] in FULL for r in rows),
        "messages": dict(failed.most_common(5)),
    }  # fmt: skip


def table(results: list[dict]) -> str:
    head = ("clients", "requests", "masks", "infer p50", "p95", "p99", "`/info/` p50", "p99", "wrong masks", "errors", "429/503")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for r in results:
        times = [f"{r[k]:.2f} s" if r[k] is not None else "-" for k in ("infer_p50", "infer_p95", "infer_p99")]
        times += [f"{1000 * r[k]:.0f} ms" if r[k] is not None else "-" for k in ("info_p50", "info_p99")]
        lines.append("| " + " | ".join([*(str(r[k]) for k in head[:3]), *times, *(str(r[k]) for k in ("wrong", "errors", "full"))]) + " |")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", default="1,4,16", help="annotators at the same time, one stage each (default: %(default)s)")
    p.add_argument("--seconds", type=int, default=60, help="of each stage (default: %(default)s)")
    p.add_argument("--think", type=float, default=1.0, help="seconds an annotator looks at a mask (default: %(default)s)")
    p.add_argument("--volumes", type=int, default=4)
    p.add_argument("--shape", default="96,96,40", help="voxels of each volume (default: %(default)s)")
    p.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="passed to the server")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    locust()
    volumes = make_volumes(a.volumes, tuple(int(n) for n in a.shape.split(",")))
    results = []
    with tempfile.TemporaryDirectory(prefix="load_") as folder:
        with server(volumes, Path(folder, "alone"), a.conf) as address:
            plan = {"volumes": alone(address, volumes), "think": a.think}
        for clients in map(int, a.clients.split(",")):
            place = Path(folder, str(clients))
            with server(volumes, place, a.conf) as address:
                results.append(summary(stage(address, plan, clients, a.seconds, place), clients))
            logger.info("%s", results[-1])
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))
    sys.stdout.write(table(results) + "\n")
    return int(any(r["wrong"] or r["errors"] or not r["masks"] for r in results))


if __name__ == "__main__":
    sys.exit(main())

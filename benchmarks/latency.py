"""How long does an annotator wait? This app, MONAI Label's built-in SAM 2 task and the official video predictor, with the same
weights and the same clicks on the same machine, one after the other, each in two processes of its own: one for the first click on a
volume nobody has opened, one for all other steps.

  open              the volume becomes known; the app encodes it in the background, which is waited for here
  first_click_cold  first click on a volume nobody has opened
  first_click       first click on the opened volume
  second_click      a click on another slice
  correction        one more click on the first slice
  second_label      the first click of another structure
  undo              the last click of the first structure is taken back

`official` runs in both directions with all corrected frames as conditioning frames; `builtin` goes forward only, as it does.
The two that a server calls leave the mask in a file for it to send (NRRD, not compressed); the predictor is a library and does not.
Between two steps the mask is stored, which takes about a second; the app goes on encoding in that time, as it does while an annotator
looks at a mask. A longer pause (--pause) finds the processor's caches cold.
`slices` are those that the answer decides on; `dice_vs_official` compares the masks on the slices of both, `dice` with the reference
on all slices that the engine decides on.

examples:
  python benchmarks/latency.py --json rows.json
  python benchmarks/latency.py --cases icbm --engines app,official
  python benchmarks/latency.py --repeat 3                                  # on a machine that is busy with other things as well
  python benchmarks/latency.py --cases ct1000 --engines app                # 1000 slices of 512 x 512: memory
  python benchmarks/latency.py --gpu --cases icbm
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latency_table import ENGINES, STEPS, compare, middle, table  # noqa: E402

CASES = ("icbm", "phantom300")
PARTS = {"cold": STEPS[1:2], "opened": STEPS[:1] + STEPS[2:]}


def make_case(name: str, folder: Path) -> tuple[Path, dict]:
    """Image file and the prompts of each step."""
    import nibabel as nib

    from lib.imaging.frames import Frames
    from lib.imaging.volume import Volume
    from lib.prompts import simulated_annotator
    from lib.samples import phantom, sample_data

    if name == "icbm":
        volume, labels = sample_data.icbm152()
        first, second = 2, 3
    elif name == "ct1000":  # the phantom and its mirror image in turn
        volume, labels = phantom.abdomen(5, shape=(512, 512, 250), spacing_mm=(0.7, 0.7, 1.2))
        volume, labels = (np.concatenate([x, x[..., ::-1]] * 2, 2) for x in (volume.array, labels))
        volume = Volume(volume, np.diag([0.7, 0.7, 1.2, 1.0]), name)
        first, second = phantom.LABELS["vertebra"], phantom.LABELS["aorta"]
    else:
        volume, labels = phantom.abdomen(5, shape=(512, 512, 300), spacing_mm=(0.7, 0.7, 1.0))
        first, second = phantom.LABELS["liver"], phantom.LABELS["kidney_left"]
    path = folder / (f"{name}.nii" if name == "ct1000" else f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(volume.array, volume.affine), path)
    frames = Frames.of(volume)

    def inside(value, share, skip=0):
        reference = frames.from_volume(labels == value)
        filled = np.flatnonzero(reference.any((1, 2)))
        t = int(filled[round(share * (len(filled) - 1))])
        y, x = simulated_annotator.deepest_pixel(reference[t])
        if skip:  # another place of the same slice
            ys, xs = np.ogrid[: reference.shape[1], : reference.shape[2]]
            left = reference[t] & ((ys - y) ** 2 + (xs - x) ** 2 > skip**2)
            y, x = simulated_annotator.deepest_pixel(left) or (y, x)
        return [int(v) for v in frames.to_voxel(t, y, x)]

    np.savez_compressed(folder / f"{name}.npz", first=labels == first, second=labels == second)
    a, b, c, other = inside(first, 0.5), inside(first, 0.35), inside(first, 0.5, skip=12), inside(second, 0.5)
    return path, {
        "first_click_cold": [a], "first_click": [a], "second_click": [a, b], "correction": [a, c, b], "second_label": [other],
        "undo": [a, b],
    }  # fmt: skip


def taken(file) -> np.ndarray:
    """The mask in a file of an answer, which then goes, as on the server when it is sent."""
    import nrrd

    mask = nrrd.read(str(file))[0] > 0
    os.unlink(file)
    return mask


class App:
    """This app's own inference task, as the server calls it."""

    def __init__(self, options):
        from lib.engine.options import Options
        from lib.engine.segmenter import Segmenter
        from lib.serving.active_learning.annotation_records import AnnotationRecords
        from lib.serving.inference.checkpoint_catalog import CheckpointCatalog
        from lib.serving.inference.tasks import Sam2Task, VolumeCache

        self.segmenter, self.volumes = Segmenter(compiled=options.compile), VolumeCache()
        self.options = Options(checkpoint=options.checkpoint, device=options.device)
        catalog = CheckpointCatalog.of(options.checkpoint, tempfile.mkdtemp(prefix="versions_"))
        rounds = AnnotationRecords(tempfile.mkdtemp(prefix="rounds_"))
        self.task = Sam2Task(self.segmenter, self.volumes, ["a"], catalog, rounds)
        self.request = {"device": options.device, "result_extension": ".nrrd", "result_compress": False}

    def warm(self, path) -> None:
        """Loads the network by way of a small volume."""
        self.step("warm", path, [[3, 3, 1]])
        self.segmenter.wait()

    def open(self, path) -> None:
        self.segmenter.prefetch(self.volumes.get(str(path)), self.options)
        self.segmenter.wait()

    def step(self, name, path, clicks) -> tuple[np.ndarray, np.ndarray]:
        file, answer = self.task({"image": str(path), "image_id": Path(path).name, "foreground": clicks, "background": [], **self.request})

        return lambda: (taken(file), np.arange(len(answer["predicted_iou"])))


class Builtin:
    """MONAI Label's task; it is told to forget only where the prompts no longer hold what it remembers."""

    def __init__(self, options):
        from peers import Builtin as Task

        self.task = Task(options)

    def warm(self, path) -> None:
        self.step("warm", path, [[3, 3, 1]])

    def open(self, path) -> None:
        """It has no such thing."""

    def step(self, name, path, clicks):
        reset = name in ("warm", "first_click_cold", "first_click", "second_label", "undo")
        file = self.task.run(path, clicks, reset=reset)

        def result():
            mask = taken(file)
            return mask, np.arange(min(c[2] for c in clicks), mask.shape[2])

        return result


class Official:
    """`SAM2VideoPredictor`, which keeps its state from step to step."""

    def __init__(self, options):
        from peers import Official as Peer

        self.peer = Peer(options)

    def warm(self, path) -> None:
        self.open(path)
        self.step("first_click", path, [[3, 3, 1]])

    def open(self, path) -> None:
        from lib.imaging.frames import Frames
        from lib.imaging.readers import read_volume

        self.volume = read_volume(path)
        self.frames = Frames.of(self.volume)
        self.peer.open(self.frames)

    def step(self, name, path, clicks):
        from lib.prompts.volume_prompts import group_by_slice, make_prompts

        if name == "first_click_cold":
            self.open(path)
        if name.startswith("first_click"):
            self.peer.predictor.reset_state(self.peer.state)
        prompts = group_by_slice(make_prompts(self.volume, positive=clicks, axis=self.frames.axis), self.frames)
        logits = self.peer.track(prompts, structure=2 if name == "second_label" else 1)
        return lambda: (self.peer.mask(logits), np.arange(len(self.frames)))


def peak_host_mb() -> int:
    """Of this process; `ru_maxrss` would count what the process that started it held, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def forget_peak() -> None:
    """So that reading the masks does not count; where Linux does not allow it, it does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_one(engine: str, options, image: Path, steps: dict, out: Path, part: str) -> None:
    """The steps of a part ("cold": the first click only) of one engine in this process; rows and masks go to the folder `out`."""
    import nibabel as nib
    import torch

    logging.disable(logging.WARNING)
    small = out / "warm.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.int16), np.eye(4)), small)
    cuda = torch.cuda.is_available() and options.device != "cpu"
    rows, tool = [], {"app": App, "builtin": Builtin, "official": Official}[engine](options)
    tool.warm(small)
    for name in PARTS[part]:
        time.sleep(options.pause)
        forget_peak()
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = tool.open(image) if name == "open" else tool.step(name, image, steps[name])
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        row = {"engine": engine, "step": name, "seconds": round(seconds, 3), "slices": 0, "peak_host_mb": peak_host_mb()}
        if result:
            mask, slices = result()
            row["slices"] = len(slices)
            np.savez_compressed(out / f"{engine}_{name}.npz", mask=np.packbits(mask), shape=mask.shape, slices=slices)
            del mask, result  # or they would count in the next step
        row["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20 if cuda else 0
        rows.append(row)
    (out / f"{engine}_{part}.json").write_text(json.dumps(rows))


def checkpoint_or_random(name: str, folder: Path) -> str:
    """The published checkpoint if it is here, else its architecture with random weights: as fast, but without sense."""
    from lib.model import checkpoints
    from lib.model.build import build

    known = checkpoints.KNOWN[name]
    if known.path.is_file():
        return name
    path = folder / f"{name}_random.safetensors"
    size = str(known.image_size)
    checkpoints.save_weights(build(known.config).state_dict(), path, known.config, half=False, image_size=size)
    return str(path)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, help="write the rows here")
    p.add_argument("--engines", default=",".join(ENGINES))
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="cpu", help="cpu, or cuda for all")
    p.add_argument("--pause", type=float, default=0.0, help="seconds more between two steps (0)")
    p.add_argument("--repeat", type=int, default=1, help="turns of all engines, of which the median counts (1)")
    p.add_argument("--compile", action="store_true", help="the app with torch.compile, whose warming up is waited for and not counted")
    p.add_argument("--gpu", action="store_true", help="SAM 2.1 tiny and large at 1024 px on the GPU, random weights where not here")
    p.add_argument("--one", nargs=5, metavar=("ENGINE", "IMAGE", "STEPS", "OUT", "PART"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        engine, image, steps, out, part = a.one
        run_one(engine, a, Path(image), json.loads(steps), Path(out), part)
        return
    rows = []
    runs = [(a.checkpoint, a.device)]
    with tempfile.TemporaryDirectory(prefix="latency_") as temporary:
        if a.gpu:
            runs = [(checkpoint_or_random(name, Path(temporary)), "cuda") for name in ("tiny", "large")]
        for name in a.cases.split(","):
            image, steps = make_case(name, Path(temporary))
            for checkpoint, device in runs:
                out = Path(temporary, f"{name}_{Path(checkpoint.partition('@')[0]).stem}")
                out.mkdir()
                case = name if not a.gpu else out.name
                turns: dict[tuple, list] = {}
                for turn, engine, part in itertools.product(range(a.repeat), a.engines.split(","), PARTS):
                    sys.stderr.write(f"{case}: {engine}, {part}, turn {turn + 1} of {a.repeat}\n")
                    command = [sys.executable, __file__, "--one", engine, str(image), json.dumps(steps), str(out), part]
                    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
                    with open(out / f"{engine}.log", "w") as log:  # progress bars of all three
                        done = subprocess.run(
                            [*command, "--checkpoint", checkpoint, "--device", device, "--pause", str(a.pause), *["--compile"] * a.compile], env=environment, stdout=log, stderr=log
                        )
                    if done.returncode:
                        raise SystemExit(f"{engine} failed:\n{(out / f'{engine}.log').read_text()[-3000:]}")
                    turns.setdefault((engine, part), []).append(json.loads((out / f"{engine}_{part}.json").read_text()))
                rows += [{"case": case, **r} for made in turns.values() for r in middle(made)]
                for r in rows:
                    if r["case"] == case:
                        r |= compare(out, r, Path(temporary, f"{name}.npz"), axis=2)
                if a.json:
                    a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()

"""Measure how long an annotator waits: this app, MONAI Label's built-in SAM 2 task and the official video predictor.

All engines use the same weights, the same clicks and the same machine, one after the other. Each engine runs in two processes of its
own: one for the first click on a volume that nobody has opened, one for all other steps:

  open              the volume becomes known; the app encodes it in the background, and this step waits until that is done
  first_click_cold  the first click on a volume that nobody has opened
  first_click       the first click on the opened volume
  second_click      a click on another slice
  correction        one more click on the first slice
  second_label      the first click on another structure
  undo              the last click on the first structure is taken back

`official` propagates in both directions with all corrected frames as conditioning frames; `builtin` propagates forward only, which
is all that it can do. `app` and `builtin` leave the mask in a file for a server to send (NRRD, not compressed); `official` is a
library, which writes no file.

The mask is stored between two steps. This takes about a second, in which the app goes on encoding, just as it does while an annotator
looks at a mask. A longer pause (--pause) lets the processor's caches get cold.

In the table, `ms/slice` divides by the number of slices that the answer decides on. `vs off.` compares the mask with that of
`official` on the slices that both decide on, and `Dice` compares it with the reference on all slices that the engine decides on.

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

from latency_engines import ENGINE_CLASSES  # noqa: E402
from latency_table import ENGINES, STEPS, compare_masks, format_table, median_rows  # noqa: E402

CASES = ("icbm", "phantom300")
PARTS = {"cold": STEPS[1:2], "opened": STEPS[:1] + STEPS[2:]}  # The steps of each of the two processes.


def make_case(name: str, folder: Path) -> tuple[Path, dict]:
    """Write the image and the reference masks of a case.

    Returns:
        The image file, and for each step the voxels (i, j, k) of its positive clicks.
    """
    import nibabel as nib

    from lib.imaging.frames import Frames
    from lib.imaging.volume import Volume
    from lib.prompts import simulated_annotator
    from lib.samples import phantom, sample_data

    if name == "icbm":
        volume, labels = sample_data.icbm152()
        first, second = 2, 3
    elif name == "ct1000":  # The phantom and its mirror image in turn.
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

    def click_inside(value, extent_share, clearance_pixels=0):
        """Return a voxel deep inside a label; with a clearance, one that is at least as far from the deepest."""
        reference = frames.from_volume(labels == value)
        filled = np.flatnonzero(reference.any((1, 2)))
        t = int(filled[round(extent_share * (len(filled) - 1))])
        y, x = simulated_annotator.deepest_pixel(reference[t])
        if clearance_pixels:
            ys, xs = np.ogrid[: reference.shape[1], : reference.shape[2]]
            rest = reference[t] & ((ys - y) ** 2 + (xs - x) ** 2 > clearance_pixels**2)
            y, x = simulated_annotator.deepest_pixel(rest) or (y, x)
        return [int(v) for v in frames.to_voxel(t, y, x)]

    np.savez_compressed(folder / f"{name}.npz", first=labels == first, second=labels == second)
    first_click, second_click = click_inside(first, 0.5), click_inside(first, 0.35)
    correction, other_structure = click_inside(first, 0.5, clearance_pixels=12), click_inside(second, 0.5)
    return path, {
        "first_click_cold": [first_click], "first_click": [first_click], "second_click": [first_click, second_click],
        "correction": [first_click, correction, second_click], "second_label": [other_structure], "undo": [first_click, second_click],
    }  # fmt: skip


def peak_host_mb() -> int:
    """Return the peak memory of this process in MiB; `ru_maxrss` would include what the process that started it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def reset_peak() -> None:
    """Reset the peak memory, so that reading the masks does not count; this does nothing where Linux does not allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_steps(engine_name: str, options, image: Path, steps: dict, out: Path, part: str) -> None:
    """Run the steps of one part with one engine in this process and write rows and masks to the folder `out`.

    Args:
        steps: The clicks of each step, see `make_case`.
        part: A key of PARTS.
    """
    import nibabel as nib
    import torch

    logging.disable(logging.WARNING)
    small_image = out / "warm.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.int16), np.eye(4)), small_image)
    uses_cuda = torch.cuda.is_available() and options.device != "cpu"
    rows, engine = [], ENGINE_CLASSES[engine_name](options)
    engine.warm(small_image)
    for name in PARTS[part]:
        time.sleep(options.pause)
        reset_peak()
        if uses_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        outcome = engine.open(image) if name == "open" else engine.step(name, image, steps[name])
        if uses_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        row = {"engine": engine_name, "step": name, "seconds": round(seconds, 3), "slices": 0, "peak_host_mb": peak_host_mb()}
        if outcome:
            mask, slices = outcome()
            row["slices"] = len(slices)
            np.savez_compressed(out / f"{engine_name}_{name}.npz", mask=np.packbits(mask), shape=mask.shape, slices=slices)
            del mask, outcome  # They would count as memory of the next step.
        row["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20 if uses_cuda else 0
        rows.append(row)
    (out / f"{engine_name}_{part}.json").write_text(json.dumps(rows))


def checkpoint_or_random(name: str, folder: Path) -> str:
    """Return a checkpoint if it has been downloaded, else a file of random weights for its architecture.

    Random weights take as long to compute with, but give masks that mean nothing.
    """
    from lib.model import checkpoints
    from lib.model.build import build

    checkpoint = checkpoints.KNOWN[name]
    if checkpoint.path.is_file():
        return name
    path = folder / f"{name}_random.safetensors"
    size = str(checkpoint.image_size)
    checkpoints.save_weights(build(checkpoint.config).state_dict(), path, checkpoint.config, half=False, image_size=size)
    return str(path)


def run_in_process(engine: str, part: str, image: Path, steps: dict, out: Path, options: list[str]) -> list[dict]:
    """Run the steps of one part with one engine in a new process and return its rows."""
    command = [sys.executable, __file__, "--one", engine, str(image), json.dumps(steps), str(out), part, *options]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    log_path = out / f"{engine}.log"  # All three engines draw progress bars.
    with open(log_path, "w") as log:
        process = subprocess.run(command, env=environment, stdout=log, stderr=log)
    if process.returncode:
        raise SystemExit(f"{engine} failed:\n{log_path.read_text()[-3000:]}")
    return json.loads((out / f"{engine}_{part}.json").read_text())


def main() -> None:
    """Read the options, run all engines on all cases and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, help="file to which the rows are written")
    p.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    p.add_argument("--cases", default=",".join(CASES), help="default: %(default)s; ct1000 is possible, too")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="cpu", help="cpu or cuda, for all engines (default: %(default)s)")
    p.add_argument("--pause", type=float, default=0.0, help="additional seconds between two steps (default: %(default)s)")
    p.add_argument("--repeat", type=int, default=1, help="how often each engine runs; the median is reported (default: %(default)s)")
    p.add_argument("--gpu", action="store_true", help="SAM 2.1 tiny and large at 1024 pixels on the GPU; missing weights are random")
    p.add_argument("--one", nargs=5, metavar=("ENGINE", "IMAGE", "STEPS", "OUT", "PART"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        engine, image, steps, out, part = a.one
        run_steps(engine, a, Path(image), json.loads(steps), Path(out), part)
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
                options = ["--checkpoint", checkpoint, "--device", device, "--pause", str(a.pause)]
                repetitions: dict[tuple, list] = {}
                for n, engine, part in itertools.product(range(a.repeat), a.engines.split(","), PARTS):
                    sys.stderr.write(f"{case}: {engine}, {part}, turn {n + 1} of {a.repeat}\n")
                    repetitions.setdefault((engine, part), []).append(run_in_process(engine, part, image, steps, out, options))
                rows += [{"case": case, **row} for repeated in repetitions.values() for row in median_rows(repeated)]
                for row in rows:
                    if row["case"] == case:
                        row |= compare_masks(out, row, Path(temporary, f"{name}.npz"), axis=2)
                if a.json:
                    a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows) + "\n")


if __name__ == "__main__":
    main()

"""Measure how much memory the features of a long CT take with SAM 2.1 tiny at 1024 pixels on a CPU.

The image encoder is replaced by one that returns random features of the same sizes at once, because the real one takes half an hour
for 1000 slices.

examples:
  python benchmarks/store.py
  python benchmarks/store.py --slices 300
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.volume import Volume  # noqa: E402
from lib.model.build import build  # noqa: E402
from lib.model.features import SliceFeatures  # noqa: E402

LEVELS = ((32, 256), (64, 128), (256, 64))  # Channels and side of each feature level, the finest first.


def main() -> None:
    """Fill the feature store with all slices of a volume of noise and print its size and the peak memory."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slices", type=int, default=1000, help="slices of the volume (default: %(default)s)")
    a = p.parse_args()
    model = build("sam2.1/sam2.1_hiera_t.yaml")
    model.forward_image = lambda x: {
        "backbone_fpn": [torch.rand(len(x), channels, side, side) for channels, side in LEVELS],
        "vision_pos_enc": [torch.zeros(len(x), 256, side, side) for _, side in LEVELS],
    }
    noise = np.random.default_rng(0).integers(-1000, 1000, (512, 512, a.slices), dtype=np.int16)
    frames = Frames.of(Volume(noise, np.diag([0.7, 0.7, 1.0, 1.0]), "ct"), axis=2)
    features = SliceFeatures(model, frames, torch.device("cpu"), nullcontext, 1, keep_half=True)
    for t in tqdm(range(a.slices), unit="slice"):
        features.ensure([t])
    peak_mb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    kept = a.slices - len(features.missing(range(a.slices)))
    sys.stdout.write(f"slices kept {kept} of {a.slices}, features {features.bytes >> 20} MB, peak host memory {peak_mb} MB\n")


if __name__ == "__main__":
    main()

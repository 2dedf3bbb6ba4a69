"""Time reading a DICOM series of 300 slices: the project's reader, which checks every slice, beside SimpleITK's, which checks none.

example: python benchmarks/reading.py --repeat 3
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from lib.imaging.readers import read_volume  # noqa: E402
from lib.imaging.volume import Volume  # noqa: E402
from lib.samples.sample_data import write_dicom  # noqa: E402


def read_with_simpleitk(folder: Path) -> np.ndarray:
    """Return the voxels (I, J, K) of a series as MONAI Label's own conversion reads them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)


def main() -> None:
    """Write a series into a temporary folder and print the seconds of each round; both readers must return the same voxels."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slices", type=int, default=300)
    p.add_argument("--repeat", type=int, default=3)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "series")
        voxels = np.random.default_rng(0).integers(-1000, 2000, (512, 512, options.slices)).astype(np.int16)
        write_dicom(Volume(voxels, np.diag([-0.7, -0.7, 1.0, 1.0])), folder, modality="CT", description="reading")
        for _ in range(options.repeat):
            start = time.perf_counter()
            own = read_volume(folder).array
            middle = time.perf_counter()
            other = read_with_simpleitk(folder)
            seconds = time.perf_counter() - middle
            np.testing.assert_array_equal(own, other)
            print(f"{options.slices} slices: read_volume {middle - start:.2f} s, SimpleITK {seconds:.2f} s")


if __name__ == "__main__":
    main()

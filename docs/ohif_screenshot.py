"""Make the picture docs/ohif.png: two structures in the page around OHIF, in a headless Chromium.

examples:
  pip install playwright ; apt install chromium
  python docs/ohif_screenshot.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

import nibabel as nib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.samples import phantom  # noqa: E402
from tests.serving import ohif, ohif_page  # noqa: E402

STRUCTURES = ("liver", "kidney_left", "spleen", "aorta", "vertebra")
SLICE = 40


def main() -> None:
    """Write a generated patient, start a server, click on two organs, and make the picture."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "ohif.png", help="the picture (default: docs/ohif.png)")
    a = p.parse_args()
    volume, labels = phantom.abdomen()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "studies").mkdir()
        nib.save(nib.Nifti1Image(volume.array, volume.affine), Path(folder) / "studies" / "ct_phantom.nii.gz")
        with ohif.folder_server(Path(folder), STRUCTURES) as address, ohif.chromium() as browser:
            page = ohif_page.AnnotationPage(ohif_page.new_page(browser), f"{address}/sam2/ohif?image=ct_phantom", volume)
            page.frame.get_by_text("Confirm and Hide").click()
            for structure in ("kidney_left", "liver"):
                page.choose(structure)
                page.go_to(SLICE)
                page.click(ohif.voxel_in(labels, structure, SLICE))
            page.page.wait_for_timeout(2_000)  # A slow machine takes a while to draw the three planes.
            page.page.screenshot(path=a.out)


if __name__ == "__main__":
    main()

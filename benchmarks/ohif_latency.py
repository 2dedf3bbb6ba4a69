"""Measure how long an annotator waits in OHIF: from a mouse click to the first drawn pixels of that slice, and to the mask of the volume.

A real Chromium shows a generated patient on a real server. The times are taken in the page: from the release of the mouse button to the
first picture that was drawn after the label map had changed (`slice`), and to the last one (`volume`). Clicks that change nothing count
as drawn when the answer is there. The first click on a structure and all further ones are listed apart as well.

examples:
  python benchmarks/ohif_latency.py
  python benchmarks/ohif_latency.py --shape 512,512,300 --spacing 0.8,0.8,1.5
"""

import argparse
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.samples import phantom  # noqa: E402
from tests.serving import ohif, ohif_page  # noqa: E402

STRUCTURES = ("liver", "kidney_left", "vertebra", "spleen", "aorta", "kidney_right")
# Notes for each release of the mouse button when pictures were drawn that show a changed label map, in ms.
OBSERVE = """() => {
    window.waits = [];
    let isChanged = false;
    window.addEventListener('mouseup', (e) => { isChanged = false; waits.push({ clicked: e.timeStamp, drawn: [], answered: 0 }); }, true);
    cornerstone.eventTarget.addEventListener(cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED, () => { isChanged = true; });
    const viewport = cornerstone.getRenderingEngines()[0].getViewport('mpr-axial');
    viewport.element.addEventListener(cornerstone.Enums.Events.IMAGE_RENDERED, () => {
        if (isChanged && waits.length) waits.at(-1).drawn.push(performance.now());
        isChanged = false;
    });
    new MutationObserver(() => {
        if (parent.document.body.dataset.busy === 'false' && waits.length) waits.at(-1).answered = performance.now();
    }).observe(parent.document.body, { attributeFilter: ['data-busy'] });
}"""


def measure(page: ohif_page.AnnotationPage, labels: np.ndarray, clicks: int) -> list[dict]:
    """Click on structures in turn, on other slices each time, and return {structure, is_first, slice_s, volume_s} of each click."""
    page.frame.evaluate(OBSERVE)
    rows, rounds = [], -(-clicks // len(STRUCTURES))
    for structure in STRUCTURES:
        filled = np.flatnonzero((labels == phantom.LABELS[structure]).any((0, 1)))
        page.choose(structure)
        for share in np.linspace(0.2, 0.8, rounds):
            k = int(filled[round(share * (len(filled) - 1))])
            page.go_to(k)
            page.click(ohif.voxel_in(labels, structure, k))
            page.page.wait_for_timeout(500)  # The last picture may follow the answer.
            wait = page.frame.evaluate("waits.at(-1)")
            times = [*wait["drawn"], wait["answered"]] if not wait["drawn"] else wait["drawn"]
            rows.append({
                "structure": structure, "is_first": share == 0.2,
                "slice_s": (times[0] - wait["clicked"]) / 1000, "volume_s": (times[-1] - wait["clicked"]) / 1000,
            })  # fmt: skip
    return rows[:clicks]


def print_table(rows: list[dict]) -> None:
    """Print the median and the 95th percentile of the times."""
    print(f"{'clicks':28s} {'number':>6s} {'slice p50':>10s} {'slice p95':>10s} {'volume p50':>11s} {'volume p95':>11s}  (seconds)")
    groups = {"all": rows, "first on a structure": [r for r in rows if r["is_first"]], "further ones": [r for r in rows if not r["is_first"]]}
    for name, group in ((n, g) for n, g in groups.items() if g):
        figures = [np.percentile([r[key] for r in group], q) for key in ("slice_s", "volume_s") for q in (50, 95)]
        print(f"{name:28s} {len(group):6d} {figures[0]:10.2f} {figures[1]:10.2f} {figures[2]:11.2f} {figures[3]:11.2f}")


def main() -> None:
    """Write the patient, start the server and Chromium, and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="160,160,80", help="number of voxels I,J,K (default: %(default)s, the sample CT)")
    p.add_argument("--spacing", default="2.2,2.2,3.0", help="voxel size in mm (default: %(default)s)")
    p.add_argument("--clicks", type=int, default=30, help="number of clicks (default: %(default)s)")
    a = p.parse_args()
    shape, spacing_mm = (tuple(kind(v) for v in text.split(",")) for kind, text in ((int, a.shape), (float, a.spacing)))
    volume, labels = phantom.abdomen(shape=shape, spacing_mm=spacing_mm)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "studies").mkdir()
        nib.save(nib.Nifti1Image(volume.array, volume.affine), Path(folder) / "studies" / "ct.nii.gz")
        with ohif.folder_server(Path(folder), STRUCTURES) as address, ohif.chromium() as browser:
            page = ohif_page.AnnotationPage(ohif_page.new_page(browser), f"{address}/sam2/ohif?image=ct", volume)
            print_table(measure(page, labels, a.clicks))


if __name__ == "__main__":
    main()

"""Measure how long an annotator waits in OHIF: from a mouse click to the first drawn pixels of that slice, and to the mask of the volume.

A real Chromium shows a generated patient on a real server. The times are taken in the page: from the release of the mouse button to the
first changed picture of the viewport with the slices (`slice`), and to the last changed picture of any viewport or to the end of the work,
whichever is later (`volume`). Clicks that change nothing count as drawn when the work has ended. The table also says how long the server
itself worked. The first click on a structure and all further ones are listed apart as well.

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
# Notes for each release of the mouse button when viewports drew other pixels than before and when the work ended, in ms, and the answers.
OBSERVE = """() => {
    window.waits = [];
    const body = parent.document.body, pictures = new Map(), { IMAGE_RENDERED } = cornerstone.Enums.Events;
    const checksum = (canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Uint32Array(data.buffer).reduce((sum, pixel) => (sum * 31 + pixel) | 0, 0);
    };
    for (const viewport of cornerstone.getRenderingEngines()[0].getViewports()) {
        const { id, canvas } = viewport;
        pictures.set(id, checksum(canvas));
        viewport.element.addEventListener(IMAGE_RENDERED, () => {
            const now = performance.now(), picture = checksum(canvas);
            if (picture !== pictures.get(id) && waits.length) waits.at(-1).drawn.push({ id, at: now });
            pictures.set(id, picture);
        });
    }
    window.addEventListener('mouseup', (e) => waits.push({ clicked: e.timeStamp, drawn: [], answers: [], ended: 0 }), true);
    new MutationObserver(() => {
        const wait = waits.at(-1);
        if (wait && body.dataset.busy === 'true') wait.ended = 0;
        else if (wait) wait.ended ||= performance.now();
    }).observe(body, { attributeFilter: ['data-busy'] });
    const { parse } = parent.JSON;
    parent.JSON.parse = (text, ...more) => {
        const value = parse(text, ...more);
        if (value && value.latencies && waits.length) waits.at(-1).answers.push(value.latencies);
        return value;
    };
}"""
KEYS = ("slice_s", "volume_s", "server_slice_s", "server_volume_s")


def measure(page: ohif_page.AnnotationPage, labels: np.ndarray, clicks: int) -> list[dict]:
    """Click on structures in turn, on other slices each time, and return structure, is_first and the times of `KEYS` of each click."""
    page.frame.evaluate(OBSERVE)
    rows, rounds = [], -(-clicks // len(STRUCTURES))
    for structure in STRUCTURES:
        filled = np.flatnonzero((labels == phantom.LABELS[structure]).any((0, 1)))
        page.choose(structure)
        for share in np.linspace(0.2, 0.8, rounds):
            k = int(filled[round(share * (len(filled) - 1))])
            page.go_to(k)
            page.click(ohif.voxel_in(labels, structure, k))
            page.page.wait_for_timeout(700)  # The last picture follows the answer.
            wait = page.frame.evaluate("waits.at(-1)")
            first = min((d["at"] for d in wait["drawn"] if d["id"] == "mpr-axial"), default=wait["ended"])
            last = max([wait["ended"], *(d["at"] for d in wait["drawn"])])
            server_s = [answer["total"] for answer in wait["answers"]]
            times = ((first - wait["clicked"]) / 1000, (last - wait["clicked"]) / 1000, server_s[0], server_s[-1])
            rows.append({"structure": structure, "is_first": share == 0.2, **dict(zip(KEYS, times, strict=True))})
    return rows[:clicks]


def print_table(rows: list[dict]) -> None:
    """Print the median and the 95th percentile of the times."""
    titles = " ".join(f"{key.removesuffix('_s').replace('_', ' '):>15s}" for key in KEYS)
    print(f"{'seconds, p50 and p95':24s} {'clicks':>6s} {titles}")
    groups = {"all": rows, "first on a structure": [r for r in rows if r["is_first"]], "further ones": [r for r in rows if not r["is_first"]]}
    for name, group in ((n, g) for n, g in groups.items() if g):
        figures = " ".join("{:>8.2f} {:>6.2f}".format(*np.percentile([r[key] for r in group], (50, 95))) for key in KEYS)
        print(f"{name:24s} {len(group):6d} {figures}")


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

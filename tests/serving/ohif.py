"""Helpers of the tests with OHIF in headless Chromium, a real Orthanc and a real server; the tests are skipped where one is missing."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from lib.common.errors import OptionError
from lib.imaging.masks import deepest_pixel
from lib.samples import phantom
from lib.serving.launch import PLUGINS, start_monailabel, start_orthanc, stop, wait_for
from tests.serving.processes import free_port

CHROMIUM = shutil.which("chromium")
PLUGIN = any(Path(d, "libOrthancDicomWeb.so").exists() for d in PLUGINS)
playwright = pytest.importorskip("playwright.sync_api")
MARKS = [
    pytest.mark.server,
    pytest.mark.skipif(not (CHROMIUM and PLUGIN and shutil.which("Orthanc")), reason="needs chromium, Orthanc and its DICOMweb plugin"),
]
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
CAMERAS = """() => Object.fromEntries(cornerstone.getRenderingEngines().flatMap((e) => e.getViewports())
    .filter((v) => v.type === 'orthographic').map((v) => [v.id, {
        number: v.getSliceIndex() + 1, focal: [...v.getCamera().focalPoint], normal: [...v.getCamera().viewPlaneNormal],
        text: v.element.parentElement.innerText}]))"""
ON_SCREEN = """(world) => {
    const v = cornerstone.getRenderingEngines().flatMap((e) => e.getViewports()).find((v) => v.id === 'mpr-axial');
    const [x, y] = v.worldToCanvas(world), box = v.element.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""


@contextmanager
def stack(folder, labels):
    """Run an Orthanc that holds the series below `folder`/dicom, and a server whose labels are `labels`.

    Yields:
        The address of the server, the address of Orthanc, {name: SeriesInstanceUID}, {name: StudyInstanceUID}.
    """
    processes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(folder / "cache"))
        try:
            store = start_orthanc(processes, folder / "dicom", free_port())
            port = free_port()
            conf = [(k, str(folder / k)) for k in ("rounds", "versions")] + [("labels", ",".join(labels))]
            processes.append(start_monailabel(store["dicomweb"], "127.0.0.1", port, conf))
            address, orthanc = f"http://127.0.0.1:{port}", store["dicomweb"].removesuffix("/dicom-web")
            try:
                wait_for(f"{address}/info/", processes[-1])
            except OptionError as e:
                pytest.fail(str(e))
            all_series = requests.get(f"{orthanc}/series?expand", timeout=30).json()
            series = {s["MainDicomTags"]["SeriesDescription"]: s["MainDicomTags"]["SeriesInstanceUID"] for s in all_series}
            yield address, orthanc, series, store["studies"]
        finally:
            stop(processes)


@contextmanager
def chromium():
    """Run a headless Chromium."""
    SCREENSHOTS.mkdir(exist_ok=True)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def connect(page, address, study):
    """Open a study in the unmodified OHIF and connect its panel to the server."""
    page.goto(f"{address}/ohif/monai-label?StudyInstanceUIDs={study}")
    page.wait_for_selector("canvas", timeout=150_000)
    page.get_by_text("Confirm and Hide").click()
    page.fill("#monailabelServerURL", address + "/")
    page.click(".monaiLabelPanel button.actionButton")


def voxel_in(labels, organ, k):
    """Return a voxel [i, j, k] deep inside an organ on slice k, or any voxel of the slice if the organ is not on it."""
    mask = labels[:, :, k] == phantom.LABELS[organ]
    i, j = deepest_pixel(mask) if mask.any() else (5, 5)
    return [int(i), int(j), int(k)]


def to_lps(volume, ijk):
    """Return the point (3,) in mm LPS of a voxel."""
    return (volume.affine @ [*ijk, 1])[:3] * (-1, -1, 1)

"""Helpers of the tests with OHIF in headless Chromium and a real server, some with a real Orthanc; they are skipped where one is missing."""

import base64
import io
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

from lib.common.errors import OptionError
from lib.imaging.masks import deepest_pixel
from lib.imaging.volume import Volume
from lib.samples import phantom
from lib.serving.launch import start_monailabel, stop, wait_for
from tests.serving import orthanc
from tests.serving.processes import free_port

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api")
FOLDER_MARKS = [pytest.mark.server, pytest.mark.skipif(not CHROMIUM, reason="needs chromium")]
MARKS = [
    pytest.mark.server,
    pytest.mark.skipif(not (CHROMIUM and orthanc.IS_INSTALLED), reason="needs chromium, Orthanc and its DICOMweb plugin"),
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

LISTEN = """() => {
    window.updates = 0;
    const { SEGMENTATION_DATA_MODIFIED } = cornerstoneTools.Enums.Events;
    cornerstone.eventTarget.addEventListener(SEGMENTATION_DATA_MODIFIED, () => { window.updates += 1; });
}"""
CLICKS = "() => cornerstoneTools.annotation.state.getAllAnnotations().length"
# True once the volume is loaded and the label map has the colours of the panel, which OHIF sets a second after connecting.
READY = """() => {
    try {
        const colours = [...document.querySelectorAll('.segColor')].slice(1).map((e) => e.style.backgroundColor); // the first is background
        const colour = (segment) => cornerstoneTools.segmentation.config.color.getSegmentIndexColor('mpr-axial', '1', segment).slice(0, 3);
        return services.segmentationService.getLabelmapVolume('1')
            && cornerstone.cache.getVolumes().every((v) => v.loadStatus?.loaded ?? true)
            && colours.length && colours.every((c, i) => c === `rgb(${colour(i + 1).join(', ')})`);
    } catch {
        return false; // OHIF has not loaded all of its modules yet
    }
}"""
LABEL_MAP = """() => {
    const { dimensions, origin, spacing, direction, voxelManager } = services.segmentationService.getLabelmapVolume('1');
    let text = '';
    for (const voxel of voxelManager.getCompleteScalarDataArray()) text += String.fromCharCode(voxel);
    return { size: [...dimensions], origin: [...origin], spacing: [...spacing], direction: [...direction], voxels: btoa(text) };
}"""
# This build of OHIF has code for submitting but no button, so this calls that code with the label map and the names of its segments.
SUBMIT = """(image) => {
    const panel = document.querySelector('.monaiLabelPanel');
    let node = panel[Object.keys(panel).find((k) => k.startsWith('__reactFiber'))];
    while (!node.stateNode?.client) node = node.return;
    const voxels = services.segmentationService.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray();
    const { segments } = services.segmentationService.getSegmentation('1');
    const names = Object.values(segments).filter(Boolean).map((s) => ({ name: s.label, idx: s.segmentIndex }));
    return node.stateNode.client().save_label(image, new Blob([voxels]), { label_info: names }).then((answer) => answer.status);
}"""

def small_phantom() -> tuple[Volume, np.ndarray]:
    """Return an image that a browser on two cores draws quickly, and its labels (I, J, K)."""
    return phantom.abdomen(shape=(96, 90, 32), spacing_mm=(3.6, 3.6, 7.5))


def folder_with_phantom(folder: Path) -> tuple[Path, Volume, np.ndarray]:
    """Write the small phantom as the study `ct` of a folder; return the folder, the image and its labels (I, J, K)."""
    volume, organs = small_phantom()
    (folder / "studies").mkdir()
    nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / "studies" / "ct.nii.gz")
    return folder, volume, organs


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
            store = orthanc.start_orthanc(processes, folder / "dicom", free_port())
            port = free_port()
            conf = [(k, str(folder / k)) for k in ("rounds", "versions")] + [("labels", ",".join(labels))]
            processes.append(start_monailabel(store["dicomweb"], "127.0.0.1", port, conf))
            address, store_address = f"http://127.0.0.1:{port}", store["dicomweb"].removesuffix("/dicom-web")
            try:
                wait_for(f"{address}/info/", processes[-1])
            except OptionError as e:
                pytest.fail(str(e))
            all_series = requests.get(f"{store_address}/series?expand", timeout=30).json()
            series = {s["MainDicomTags"]["SeriesDescription"]: s["MainDicomTags"]["SeriesInstanceUID"] for s in all_series}
            yield address, store_address, series, store["studies"]
        finally:
            stop(processes)


@contextmanager
def folder_server(folder, labels, root_path="", ready="/info/", port=None):
    """Run a server on the images in `folder`/studies whose labels are `labels`, and yield its address once it answers at `ready`."""
    processes, port = [], port or free_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(folder / "cache"))
        try:
            conf = [(k, str(folder / k)) for k in ("rounds", "versions")] + [("labels", ",".join(labels))]
            processes.append(start_monailabel(str(folder / "studies"), "127.0.0.1", port, conf, folder / "server.log", root_path))
            wait_for(f"{address}{ready}", processes[-1], log=folder / "server.log")
            yield address
        finally:
            stop(processes)


@contextmanager
def chromium(trusted_key=None):
    """Run a headless Chromium.

    Args:
        trusted_key: SHA-256 in base64 of the public key of a certificate to trust. Pages opened with Playwright's `ignore_https_errors` instead
            ask anew for each connection, and lose files when many are opened at once (net::ERR_TOO_MANY_RETRIES).
    """
    SCREENSHOTS.mkdir(exist_ok=True)
    with playwright.sync_playwright() as play:
        trust = [f"--ignore-certificate-errors-spki-list={trusted_key}"] if trusted_key else []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS + trust)
        yield browser
        browser.close()


def connect(page, address, study):
    """Open a study in the unmodified OHIF and connect its panel to the server; where no image appears, say what the page reported."""
    reports = []
    page.on("console", lambda message: reports.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: reports.append(f"error: {error}"))
    page.on("requestfailed", lambda request: reports.append(f"failed: {request.url} {request.failure}"))
    page.on("response", lambda response: response.status >= 400 and reports.append(f"{response.status}: {response.url}"))
    page.goto(f"{address}/ohif/monai-label?StudyInstanceUIDs={study}")
    try:
        page.wait_for_selector("canvas", timeout=150_000)
    except playwright.TimeoutError:
        page.screenshot(path=SCREENSHOTS / "ohif_without_image.png")
        pytest.fail("\n".join(["OHIF shows no image; it reported:", *reports, "Its text:", page.inner_text("body")]))
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


class Viewer:
    """OHIF with its panel connected, one volume open and its axial viewport on slice `k`.

    Args:
        page: The page of the browser.
        volume: The volume as written to the store; voxels (i, j, k) refer to its grid.
    """

    def __init__(self, page, volume):
        page.wait_for_function(READY, timeout=60_000)
        page.click("label[for=tab-3]")
        page.evaluate(LISTEN)
        self.page, self.volume = page, volume
        self.tab = page.locator(".tab", has=page.locator("#tab-3"))
        x, y, z = page.evaluate(CAMERAS)["mpr-axial"]["focal"]
        self.k = int(np.rint(np.linalg.inv(volume.affine) @ [-x, -y, z, 1])[2])

    def pick(self, segment):
        """Choose a row of the panel; "background" is for negative clicks."""
        row = self.tab.locator("tr.clickable-row", has=self.page.get_by_text(segment, exact=True))
        row.click()
        playwright.expect(row).to_have_attribute("style", re.compile("dark(red|blue)"))

    def click(self, voxel):
        before = self.page.evaluate(CLICKS)
        self.page.mouse.click(*self.on_screen([voxel])[0])
        self.page.wait_for_function(f"({CLICKS})() === {before + 1}")

    def run(self) -> np.ndarray:
        """Press Run, and return the labels (I, J, K) once they have arrived and are displayed."""
        before, updates = self.axial_png(), self.page.evaluate("updates")
        with self.page.expect_response(lambda r: "/infer/" in r.url, timeout=120_000) as answer:
            self.tab.get_by_role("button", name="Run").click()
        assert answer.value.ok, answer.value.text()
        self.page.wait_for_function(f"updates > {updates}")
        for _ in range(100):  # the display follows later, so wait until it has changed and stays the same
            picture = self.axial_png()
            if picture != before and picture == self.axial_png():
                return self.labels()
        pytest.fail("OHIF has not drawn the mask")

    def labels(self) -> np.ndarray:
        """Return the labels (I, J, K) in cornerstone's cache on the volume's grid; its own grid may count slices the other way round."""
        label_map = self.page.evaluate(LABEL_MAP)
        array = np.frombuffer(base64.b64decode(label_map["voxels"]), np.uint8).reshape(label_map["size"], order="F")
        affine_lps = np.eye(4)
        affine_lps[:3, :3] = np.reshape(label_map["direction"], (3, 3)).T * label_map["spacing"]
        affine_lps[:3, 3] = label_map["origin"]
        voxels = np.array([*np.indices(self.volume.shape).reshape(3, -1), np.ones(self.volume.array.size)])
        indices = np.linalg.inv(affine_lps) @ np.diag([-1, -1, 1, 1]) @ self.volume.affine @ voxels
        return array[tuple(np.rint(indices[:3]).astype(int))].reshape(self.volume.shape)

    def on_screen(self, voxels) -> list:
        """Return the positions (x, y) of voxels of slice `k` in the page, in pixels."""
        return self.page.evaluate(f"(worlds) => worlds.map({ON_SCREEN})", [to_lps(self.volume, v).tolist() for v in voxels])

    def axial_png(self) -> bytes:
        """Return a screenshot of the axial viewport as PNG."""
        return self.page.locator("[data-viewport-uid=mpr-axial]").screenshot()

    def colours(self, voxels) -> np.ndarray:
        """Return the RGB colours (N, 3) of the screen at N voxels."""
        picture = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"), int)
        return np.array([picture[round(y), round(x)] for x, y in self.on_screen(voxels)])

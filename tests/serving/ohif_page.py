"""The page around OHIF, as an annotator uses it, for tests in Chromium."""

import base64

import numpy as np

from lib.imaging.volume import Volume
from tests.serving.ohif import LABEL_MAP, ON_SCREEN, playwright, to_lps

VIEWPORT = {"width": 1500, "height": 900}


def new_page(browser):
    """Return an empty page of a usual size, with cookies of its own."""
    return browser.new_page(viewport=VIEWPORT)


class AnnotationPage:
    """An image in OHIF with the bar above it, ready for clicks.

    Args:
        page: An empty page of the browser.
        link: Address of the page; "" if a link has led there already.
        volume: The image; voxels (i, j, k) are those of its file.
    """

    def __init__(self, page, link: str, volume: Volume):
        self.page, self.volume, self.errors = page, volume, []
        page.on("pageerror", lambda error: self.errors.append(error.stack) if "/sam2/ohif/scripts/" in (error.stack or "") else None)
        if link:
            self.page.goto(link)
        self.wait_until_ready()

    def wait_until_ready(self):
        """Wait until OHIF displays the image and the bar can be used."""
        self.page.wait_for_selector("body[data-ready]", timeout=150_000)
        self.frame = next(f for f in self.page.frames if "/ohif/" in f.url and f != self.page.main_frame)

    def close(self):
        self.page.close()

    def press(self, button: str):
        """Press a button of the bar, and wait for the mask that follows."""
        self.page.get_by_role("button", name=button, exact=True).click()
        self.wait()

    def key(self, name: str):
        """Press a key, and wait for the mask that follows."""
        self.page.keyboard.press(name)
        self.wait()

    def wait(self):
        """Wait until nothing is being computed, and check that no script of the page has failed."""
        self.page.wait_for_selector("body[data-busy=false]", timeout=120_000)
        assert not self.errors, self.errors

    def message(self) -> str:
        return self.page.locator("#message").inner_text()

    def expect_message(self, text):
        playwright.expect(self.page.locator("#message")).to_contain_text(text, timeout=60_000)

    def choose(self, structure: str):
        """Choose a structure in the list."""
        names = [text[2:] for text in self.page.locator("#structures option").all_inner_texts()]  # A circle precedes each name.
        self.page.select_option("#structures", index=names.index(structure))

    def go_to(self, k: int):
        """Click on the cell of slice k (of the file) in the strip, and wait until OHIF shows it."""
        t = self.viewer_slice(k)
        self.page.locator(f"[data-slice='{t}']").click()
        self.page.wait_for_selector(f"[data-slice='{t}'][aria-current]")

    def viewer_slice(self, k: int) -> int:
        """Return slice k of the file as OHIF's volume counts it."""
        return self.volume.shape[2] - 1 - k if np.linalg.det(self.volume.affine[:3, :3]) < 0 else k

    def position(self, voxel) -> tuple[int, int]:
        """Return where a voxel is in the page, in whole pixels."""
        x, y = self.frame.evaluate(ON_SCREEN, to_lps(self.volume, voxel).tolist())
        box = self.page.locator("#ohif").bounding_box()
        return round(box["x"] + x), round(box["y"] + y)

    def click(self, voxel, *, outside: bool = False):
        """Click on a voxel of the slice in view, with the key for clicks outside the structure if so, and wait for the mask."""
        if outside:
            self.page.keyboard.down("Alt")
        with self.page.expect_request(lambda r: "/infer/" in r.url):
            self.page.mouse.click(*self.position(voxel))
        if outside:
            self.page.keyboard.up("Alt")
        self.wait()

    def drag(self, *voxels):
        """Press the mouse button on a voxel, move it over other ones, release it, and wait for the mask."""
        self.move_pressed(*voxels)
        with self.page.expect_request(lambda r: "/infer/" in r.url):
            self.page.mouse.up()
        self.wait()

    def move_pressed(self, first, *voxels):
        """Press the mouse button on a voxel, and move it over other ones."""
        self.page.mouse.move(*self.position(first))
        self.page.mouse.down()
        for voxel in voxels:
            self.page.mouse.move(*self.position(voxel), steps=6)

    def marks(self, tool: str = "ProbeMONAILabel") -> int:
        """Return the number of clicks, or of the annotations of another tool, that OHIF displays."""
        return self.frame.evaluate(
            "(tool) => cornerstoneTools.annotation.state.getAllAnnotations().filter((a) => a.metadata.toolName === tool).length", tool
        )

    def labels(self) -> np.ndarray:
        """Return the label map in OHIF, uint8 (I, J, K) on the voxels of the file."""
        label_map = self.frame.evaluate(LABEL_MAP)
        array = np.frombuffer(base64.b64decode(label_map["voxels"]), np.uint8).reshape(label_map["size"], order="F")
        return array[:, :, ::-1] if self.viewer_slice(0) else array

    def mask(self, structure: str) -> np.ndarray:
        """Return the mask of a structure, bool (I, J, K)."""
        return self.labels() == self.values()[structure]

    def values(self) -> dict[str, int]:
        """Return {name of the structure: value in the label map}."""
        return dict(self.frame.evaluate(
            "() => Object.values(services.segmentationService.getSegmentation('1').segments).map((s) => [s.label, s.segmentIndex])"
        ))  # fmt: skip

"""The page around OHIF with much to do on a small screen, in a hurry, and when something fails."""

from contextlib import ExitStack

import numpy as np
import pytest

from lib.imaging.metrics import dice
from lib.samples import phantom
from tests.serving import ohif
from tests.serving.ohif import SCREENSHOTS, playwright, voxel_in
from tests.serving.ohif_page import AnnotationPage
from tests.serving.processes import free_port

pytestmark = ohif.FOLDER_MARKS
ORGANS = ("aorta", "kidney_left", "vertebra")
LABELS = [*ORGANS, *(f"structure with a long name {n}" for n in range(1, 18))]
LAPTOP = {"width": 1280, "height": 720}
K = 12  # A slice on which all of these organs are.


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with the studies `ct` and `broken`, the volume `ct`, and its labels (I, J, K)."""
    folder, volume, organs = ohif.folder_with_phantom(tmp_path_factory.mktemp("faults"))
    (folder / "studies" / "broken.nii.gz").write_bytes((folder / "studies" / "ct.nii.gz").read_bytes()[:20_000])
    return folder, volume, organs


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def server(image, port):
    """A stack that holds the server: closing it ends the server."""
    with ExitStack() as stack:
        stack.enter_context(ohif.folder_server(image[0], LABELS, port=port))
        yield stack


@pytest.fixture(scope="module")
def browser():
    with ohif.chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def opened(image, server, port, browser):
    """The image `ct` on a small screen, which all tests share."""
    page = AnnotationPage(browser.new_page(viewport=LAPTOP), f"http://127.0.0.1:{port}/sam2/ohif?image=ct", image[1])
    page.frame.get_by_text("Confirm and Hide").click()
    return page


@pytest.fixture
def empty(opened):
    """The same without any mask, on slice K."""
    for organ in ORGANS:
        opened.choose(organ)
        if opened.mask(organ).any():
            opened.press("Clear")
    opened.go_to(K)
    return opened


def press_at(page, voxel):
    """Click on a voxel without waiting for the mask."""
    with page.page.expect_request(lambda r: "/infer/" in r.url):
        page.page.mouse.click(*page.position(voxel))


def test_an_unreadable_volume_is_reported_at_once(server, port, browser):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/sam2/ohif?image=broken")
    playwright.expect(page.locator("#message.bad")).to_contain_text("broken.nii.gz could not be read", timeout=10_000)
    page.get_by_role("link", name="all volumes").click()
    page.wait_for_url("**/sam2/")
    page.close()


def test_clicks_that_follow_each_other_quickly_all_count(empty, image):
    organs = image[2]
    i, j, k = voxel_in(organs, "kidney_left", K)
    empty.choose("kidney_left")
    press_at(empty, [i, j, k])
    press_at(empty, [i, j + 5, k])
    empty.wait()
    both = empty.mask("kidney_left")
    assert empty.marks() == 2 and dice(both, organs == phantom.LABELS["kidney_left"]) > 0.7

    press_at(empty, [i, j - 5, k])
    empty.key("Control+z")
    np.testing.assert_array_equal(empty.mask("kidney_left"), both, err_msg="undone while its mask was computed")
    assert empty.marks() == 2


def test_each_mask_goes_to_its_own_structure(empty, image):
    organs = image[2]
    empty.choose("vertebra")
    press_at(empty, voxel_in(organs, "vertebra", K))
    empty.choose("kidney_left")
    press_at(empty, voxel_in(organs, "kidney_left", K))
    empty.choose("aorta")
    empty.wait()
    for organ in ("vertebra", "kidney_left"):
        assert (organs[empty.mask(organ)[:, :, K], K] == phantom.LABELS[organ]).mean() > 0.8
        assert empty.mask(organ).any((0, 1)).sum() > 1, "also when another structure was clicked before its volume had come"
    assert not empty.mask("aorta").any()


def test_everything_but_pointing_works_by_keyboard(empty, image):
    organs, page = image[2], empty.page
    empty.choose("aorta")
    empty.key("]")
    assert page.locator("#structures option:checked").inner_text()[2:] == "kidney_left"
    empty.key("m")
    page.wait_for_function("() => document.getElementById('ohif').contentWindow.cornerstone.getRenderingEngines()[0].getViewports().length === 1")
    empty.go_to(K - 1)
    empty.key("ArrowUp")
    page.wait_for_selector(f"[data-slice='{empty.viewer_slice(K)}'][aria-current]")
    empty.click(voxel_in(organs, "kidney_left", K))
    empty.key("ArrowDown")
    page.wait_for_selector(f"[data-slice='{empty.viewer_slice(K - 1)}'][aria-current]")
    empty.key("a")
    assert "annotated" in page.locator("[aria-current]").get_attribute("class")
    page.screenshot(path=SCREENSHOTS / "ohif_laptop.png")
    mask = empty.mask("kidney_left")
    empty.key("m")
    page.wait_for_function("() => document.getElementById('ohif').contentWindow.cornerstone.getRenderingEngines()[0].getViewports().length === 3")
    np.testing.assert_array_equal(empty.mask("kidney_left"), mask)
    assert page.locator("#bar").bounding_box()["height"] < 75, "two rows"


def test_ohif_does_not_lead_away_from_the_bar(opened):
    opened.frame.locator("[data-cy=return-to-work-list]").click()
    opened.page.wait_for_timeout(300)
    assert "/ohif/monai-label?" in opened.frame.url and opened.frame.locator("canvas").count()


def test_work_goes_on_after_the_server_has_ended_and_come_back(empty, image, server, port):
    organs, page = image[2], empty.page
    empty.choose("kidney_left")
    empty.click(voxel_in(organs, "kidney_left", K))
    before = empty.labels()
    server.close()
    i, j, k = voxel_in(organs, "kidney_left", K)
    empty.click([i, j + 5, k])
    empty.expect_message("The server does not answer. Nothing is lost")
    page.screenshot(path=SCREENSHOTS / "ohif_silent.png")
    empty.key("Control+s")
    empty.expect_message("The server does not answer.")
    np.testing.assert_array_equal(empty.labels(), before)
    empty.choose("aorta")
    with ohif.folder_server(image[0], LABELS, port=port):
        empty.press("Try again")
        mask = empty.mask("kidney_left")
        assert mask[i, j + 5, k] and dice(mask, organs == phantom.LABELS["kidney_left"]) > 0.7
        empty.key("Control+s")
        empty.expect_message("Saved as the final label.")
        saved = empty.labels()
        page.reload()
        empty.wait_until_ready()
        np.testing.assert_array_equal(empty.labels(), saved)

"""A server under a path of an address with TLS, behind the real nginx with the shipped configuration, in the real OHIF."""

import pytest
import requests

from tests.deploy import nginx
from tests.serving import ohif
from tests.serving.ohif import SCREENSHOTS, Viewer, voxel_in

pytestmark = [*ohif.FOLDER_MARKS, pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is not installed")]
SEGMENTS = {"kidney_left": 1, "liver": 2}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with studies that hold one image, the image, and its labels (I, J, K)."""
    return ohif.folder_with_phantom(tmp_path_factory.mktemp("path"))


@pytest.fixture(scope="module")
def address(image):
    """The address of the server behind nginx, https://127.0.0.1:PORT/monai."""
    with (
        ohif.folder_server(image[0], SEGMENTS, root_path="/monai") as server,
        nginx.run_under_a_path(image[0], server, "/info/") as address,
    ):
        yield address


def test_ohif_draws_and_answers_under_a_path(image, address):
    folder, volume, organs = image
    state = requests.get(f"{address}/sam2/state", params={"image": "ct"}, timeout=30).json()
    found = requests.get(f"{address}/dicomweb/studies", timeout=30).json()[0]
    assert found["00081190"]["Value"] == [f"{address}/dicomweb/studies/{state['StudyInstanceUID']}"]
    with ohif.chromium(nginx.key_hash(folder)) as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        ohif.connect(page, address, state["StudyInstanceUID"])
        viewer = Viewer(page, volume)
        click = voxel_in(organs, "kidney_left", viewer.k)
        viewer.pick("kidney_left")
        viewer.click(click)
        assert viewer.run()[tuple(click)] == SEGMENTS["kidney_left"]
        page.screenshot(path=SCREENSHOTS / "ohif_path.png")
        page.goto(f"{address}/sam2/")
        page.get_by_role("link", name="open in OHIF").first.click()
        page.wait_for_selector("#bar")
        page.frame_locator("#ohif").locator("canvas").first.wait_for(timeout=60_000)
    elsewhere = {url for url in asked if not url.startswith((f"{address}/", "blob:", "data:"))}
    assert not elsewhere, "all requests go to the path"

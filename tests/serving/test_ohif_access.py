"""The bar above OHIF for users who log in, at a server under a path of an address with TLS (the real nginx)."""

import pytest
import requests

from tests.deploy import nginx
from tests.serving import ohif, ohif_page
from tests.serving.ohif import SCREENSHOTS, playwright, voxel_in
from tests.serving.ohif_page import AnnotationPage
from tests.serving.realm import PASSWORD, USER, realm

pytestmark = [*ohif.FOLDER_MARKS, pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is not installed")]
ORGAN, K = "kidney_left", 12


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with studies that hold the image `ct`, the image, and its labels (I, J, K)."""
    return ohif.folder_with_phantom(tmp_path_factory.mktemp("access"))


@pytest.fixture(scope="module")
def address(image):
    """The address of the server behind nginx, https://127.0.0.1:PORT/monai."""
    folder = image[0]
    with realm() as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with (
            ohif.folder_server(folder, [ORGAN, "liver"], root_path="/monai", ready="/sam2/login") as server,
            nginx.run_under_a_path(folder, server, "/sam2/login") as address,
        ):
            yield address


@pytest.fixture(scope="module")
def context(image, address):
    """A browser with cookies of its own, at a server that answers."""
    with ohif.chromium(nginx.key_hash(image[0])) as browser:
        yield browser.new_context(viewport=ohif_page.VIEWPORT)


def log_in(page, password=PASSWORD):
    page.get_by_label("Name").fill(USER)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_a_user_logs_in_annotates_and_submits_under_a_path(image, address, context):
    _, volume, organs = image
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/sam2/")
    log_in(page, "wrong")
    playwright.expect(page.locator("body")).to_contain_text("not accepted")
    page.screenshot(path=SCREENSHOTS / "login.png")
    log_in(page)
    page.get_by_role("link", name="open in OHIF").first.click()
    annotated = AnnotationPage(page, "", volume)
    annotated.choose(ORGAN)
    annotated.go_to(K)
    annotated.click(voxel := voxel_in(organs, ORGAN, K))
    page.screenshot(path=SCREENSHOTS / "ohif_access.png")
    assert annotated.mask(ORGAN)[tuple(voxel)]

    cookies = context.cookies()
    assert {c["path"] for c in cookies if c["name"] == "sam2_token"} == {"/monai/"}
    context.clear_cookies()
    annotated.press("Submit")
    annotated.expect_message("You are not logged in any more.")
    other = context.new_page()
    other.goto(f"{address}/sam2/")
    log_in(other)
    other.get_by_role("link", name="open in OHIF").first.wait_for()
    annotated.press("Submit")
    annotated.expect_message("Saved as the final label.")
    elsewhere = {url for url in asked if not url.startswith((f"{address}/", "blob:", "data:"))}
    assert not elsewhere, "all requests go to the path"


def test_scripts_without_a_token_are_refused(address):
    answer = requests.get(f"{address}/sam2/ohif/state", params={"image": "ct"}, timeout=30)
    assert answer.status_code == 401

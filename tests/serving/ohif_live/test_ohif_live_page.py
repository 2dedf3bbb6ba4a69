"""The page round OHIF: what it shows of a structure's quality, how it saves, its options, and several browsers at once."""

import numpy as np
import requests

from lib.samples import phantom
from tests.serving import ohif, ohif_page
from tests.serving.ohif import SCREENSHOTS, playwright, voxel_in
from tests.serving.ohif_live.kidney_image import LABELS, K
from tests.serving.ohif_page import AnnotationPage

pytestmark = ohif.FOLDER_MARKS


def saved_names(server, image):
    """Return the names of the structures in the saved label of an image."""
    answer = requests.get(f"{server}/datastore/label/info", params={"label": image, "tag": "final"}, timeout=30).json()
    return {row["name"] for row in answer["label_info"]}


def test_the_strip_shows_the_quality_and_leads_to_slices(annotated, server):
    page, record = annotated.page, requests.get(f"{server}/sam2/state", params={"image": "ct"}, timeout=30).json()["structures"]["kidney_left"]
    worst = record["proposal"]["slice"]
    cells = page.locator("#slices > div")
    assert cells.count() == 32 and page.locator("#volume-dice").inner_text() == f"{record['volume_dice']:.2f}"
    proposed = page.locator("#slices > .proposed")
    assert proposed.get_attribute("data-slice") == str(annotated.viewer_slice(worst))
    assert f"expected Dice {record['expected_dice'][worst]:.2f}" in proposed.get_attribute("title")
    filled = np.flatnonzero(annotated.mask("kidney_left").any((0, 1)))
    assert {int(n) for n in page.locator("#slices > .filled").evaluate_all("(all) => all.map((e) => e.dataset.slice)")} == {
        annotated.viewer_slice(int(k)) for k in filled
    }
    numbers = cells.evaluate_all("(all) => all.map((e) => Number(e.dataset.number))")
    assert numbers == list(range(1, 33)), "in the order of OHIF's numbers"
    annotated.go_to(int(filled[0]))
    camera = annotated.frame.evaluate(ohif.CAMERAS)["mpr-axial"]
    assert str(camera["number"]) == page.locator("[aria-current]").get_attribute("data-number")
    assert f"(voxel slice {filled[0]})" in page.locator("#where").inner_text()
    page.keyboard.press("n")
    page.wait_for_selector("#slices > .proposed[aria-current]")
    assert record["proposal"]["reason"] in page.locator("#reason").inner_text()


def test_a_saved_label_comes_back_and_submit_says_what_it_changes(images, server, browser):
    volume, organs = images[1]["ct_shared"]
    link = f"{server}/sam2/ohif?image=ct_shared"
    page = AnnotationPage(ohif_page.new_page(browser), link, volume)
    for structure in ("kidney_left", "vertebra"):
        page.choose(structure)
        page.go_to(K)
        page.click(voxel_in(organs, structure, K))
    saved = {structure: page.mask(structure) for structure in ("kidney_left", "vertebra")}
    page.press("Submit")
    page.expect_message("Saved as the final label.")
    page.close()

    page = AnnotationPage(ohif_page.new_page(browser), link, volume)
    for structure, mask in saved.items():
        np.testing.assert_array_equal(page.mask(structure), mask)
    page.press("Submit")
    page.expect_message("The saved label is the same already.")
    page.choose("vertebra")
    page.press("Clear")
    page.choose("aorta")
    page.go_to(K)
    page.click(voxel_in(organs, "aorta", K))
    page.press("Submit")
    dialog = page.page.locator("#changes")
    playwright.expect(dialog).to_contain_text("New: aorta")
    text = dialog.inner_text()
    assert "Missing, will be removed: vertebra" in text and "As before: kidney_left" in text and "Changed" not in text
    page.page.screenshot(path=SCREENSHOTS / "ohif_live_submit.png")
    page.press("Cancel")
    page.expect_message("Nothing was saved.")
    assert saved_names(server, "ct_shared") == {"kidney_left", "vertebra"}
    page.press("Submit")
    page.press("Save, keep the missing")
    page.expect_message("Saved as the final label.")
    assert saved_names(server, "ct_shared") == {"kidney_left", "vertebra", "aorta"}
    page.press("Submit")
    page.press("Save")
    page.expect_message("Saved as the final label.")
    assert saved_names(server, "ct_shared") == {"kidney_left", "aorta"}
    page.close()


def test_leaving_with_unsaved_work_is_asked_about(annotated):
    asked = []
    annotated.page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    annotated.page.get_by_role("link", name="all volumes").click(no_wait_after=True)
    playwright.expect(annotated.page.locator("#where")).to_contain_text("slice")
    assert asked == ["beforeunload"]


def test_a_silent_server_leaves_the_page_usable(annotated, organs):
    before = annotated.mask("kidney_left")
    i, j, _ = voxel_in(organs, "kidney_left", K)
    annotated.page.route("**/infer/*", lambda route: route.abort())
    annotated.click([i + 3, j, K], outside=True)
    annotated.expect_message("The server does not answer.")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), before)
    annotated.page.unroute("**/infer/*")
    annotated.press("Try again")
    assert not annotated.mask("kidney_left")[i + 3, j, K]


def test_options_go_with_the_request(annotated):
    page = annotated.page
    page.keyboard.press("o")
    page.select_option("#option-window", "bone")
    page.screenshot(path=SCREENSHOTS / "ohif_live_options.png")
    with page.expect_request(lambda r: "/infer/sam2?" in r.url) as request:
        annotated.press("Close")
    assert '"window":"bone"' in request.value.post_data and '"components"' not in request.value.post_data, "only what was changed"
    page.keyboard.press("o")
    page.select_option("#option-window", "auto")
    annotated.press("Close")


def test_two_browsers_do_not_disturb_each_other(images, server, browser, annotated):
    volume, organs = images[1]["ct"]
    before = annotated.mask("kidney_left")
    context = browser.new_context(viewport=ohif_page.VIEWPORT)
    other = AnnotationPage(context.new_page(), f"{server}/sam2/ohif?image=ct", volume)
    other.choose("vertebra")
    other.go_to(K)
    other.click(voxel_in(organs, "vertebra", K))
    vertebra = other.mask("vertebra")
    assert not other.mask("kidney_left").any() and (organs[vertebra] == phantom.LABELS["vertebra"]).mean() > 0.8
    np.testing.assert_array_equal(annotated.mask("kidney_left"), before)
    ids = [{c["name"]: c["value"] for c in page.page.context.cookies()}["sam2_client"] for page in (annotated, other)]
    assert ids[0] != ids[1]
    context.close()


def test_many_structures_on_a_small_screen(annotated):
    annotated.page.once("dialog", lambda dialog: dialog.accept("left adrenal gland"))
    annotated.page.select_option("#structures", "new")
    assert annotated.values()["left adrenal gland"] == len(LABELS) + 1
    annotated.page.set_viewport_size({"width": 1024, "height": 640})
    annotated.page.screenshot(path=SCREENSHOTS / "ohif_live_small.png")
    for button in annotated.page.locator("#bar button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 1024 and box["y"] >= 0
    assert annotated.page.locator("#bar").bounding_box()["height"] < 130

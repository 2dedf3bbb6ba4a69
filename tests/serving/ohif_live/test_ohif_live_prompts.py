"""Annotating with the bar above OHIF: each click, box, outline and painted slice gives its mask, without any other step."""

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk

from lib.imaging.metrics import dice
from lib.samples import phantom
from tests.serving import ohif, ohif_page
from tests.serving.ohif import SCREENSHOTS, voxel_in
from tests.serving.ohif_live.kidney_image import K, kidney
from tests.serving.ohif_page import AnnotationPage

pytestmark = ohif.FOLDER_MARKS


@pytest.mark.parametrize("image", ["ct_saved", "series"])
def test_a_click_draws_the_mask_and_submit_saves_it_voxel_by_voxel(images, server, browser, image):
    folder, volumes = images
    volume, organs = volumes[image]
    overview = browser.new_page()
    overview.goto(f"{server}/sam2/")
    link = overview.locator(f"a[href*='/sam2/ohif?image={image}']").first.get_attribute("href")
    overview.close()
    page = AnnotationPage(ohif_page.new_page(browser), server + link, volume)
    assert page.page.locator("#inside").get_attribute("aria-pressed") == "true", "clicks need no preparation"
    page.choose("kidney_left")
    k = next(k for k in range(volume.shape[2]) if page.page.locator(f"[data-slice='{page.viewer_slice(k)}'][aria-current]").count())
    page.click(voxel := voxel_in(organs, "kidney_left", k))
    page.page.screenshot(path=SCREENSHOTS / f"ohif_live_{image}.png")
    mask = page.mask("kidney_left")
    assert mask[tuple(voxel)] and dice(mask, kidney(organs)) > 0.6
    state = requests.get(f"{server}/sam2/state", params={"image": image}, timeout=30).json()
    assert list(state["structures"]) == ["kidney_left"], "the record has the structure's name"

    page.press("Submit")
    page.expect_message("Saved as the final label.")
    (file,) = (folder / "studies" / "labels" / "final").glob(f"{image}.n*")
    saved = nib.load(file) if file.name.endswith(".nii.gz") else sitk.ReadImage(str(file))
    array = np.asarray(saved.dataobj) if isinstance(saved, nib.Nifti1Image) else sitk.GetArrayFromImage(saved).transpose(2, 1, 0)
    np.testing.assert_array_equal(array, page.labels())
    page.close()


def test_a_click_outside_corrects_and_undo_and_redo_are_exact(annotated, organs):
    first = annotated.mask("kidney_left")
    i, j, k = voxel_in(organs, "kidney_left", K)
    wrong = np.argwhere(first[:, :, K])
    wrong = wrong[np.hypot(*(wrong - (i, j)).T).argmax()]
    annotated.click([*map(int, wrong), K], outside=True)
    second = annotated.mask("kidney_left")
    assert not second[(*wrong, K)] and first[(*wrong, K)]
    annotated.page.screenshot(path=SCREENSHOTS / "ohif_live_outside.png")
    annotated.key("Control+z")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), first)
    annotated.key("Control+y")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), second)
    annotated.key("Delete")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), first)
    annotated.press("Undo")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), second)


def test_clear_removes_mask_and_clicks_and_can_be_undone(annotated):
    before = annotated.mask("kidney_left")
    annotated.press("Clear")
    assert not annotated.labels().any() and not annotated.marks()
    annotated.key("Control+z")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), before)
    assert annotated.marks() == 1


def test_a_slice_without_the_structure_stays_empty(annotated):
    filled = np.flatnonzero(annotated.mask("kidney_left").any((0, 1)))
    annotated.go_to(int(filled[0]))
    annotated.key("x")
    mask = annotated.mask("kidney_left")
    assert not mask[:, :, filled[0]].any() and mask[:, :, K].any()
    annotated.key("Control+z")
    assert annotated.mask("kidney_left")[:, :, filled[0]].any()


def test_an_accepted_slice_stays_when_others_are_corrected(annotated, organs):
    filled = np.flatnonzero(annotated.mask("kidney_left").any((0, 1)))
    accepted = int(filled[-2])
    before = annotated.mask("kidney_left")[:, :, accepted]
    annotated.go_to(accepted)
    annotated.key("a")
    assert "annotated" in annotated.page.locator(f"[data-slice='{annotated.viewer_slice(accepted)}']").get_attribute("class")
    annotated.go_to(K)
    i, j, _ = voxel_in(organs, "kidney_left", K)
    annotated.click([i + 3, j, K], outside=True)
    np.testing.assert_array_equal(annotated.mask("kidney_left")[:, :, accepted], before)


def test_a_painted_slice_is_a_prompt_and_stays_as_it_was_painted(annotated, organs):
    i, j, _ = voxel_in(organs, "kidney_left", K)
    before = annotated.mask("kidney_left")
    k = K + 2
    annotated.go_to(k)
    annotated.key("p")
    annotated.drag([i - 16, j - 14, k], [i - 10, j - 14, k])
    painted = annotated.mask("kidney_left")
    assert painted[i - 13, j - 14, k] and not before[i - 13, j - 14, k], "the stroke is kept"
    assert (painted[:, :, k] >= before[:, :, k]).all(), "so is the rest of the slice"
    annotated.page.screenshot(path=SCREENSHOTS / "ohif_live_painted.png")
    cell = annotated.page.locator(f"[data-slice='{annotated.viewer_slice(k)}']")
    assert "annotated" in cell.get_attribute("class")
    annotated.key("f")
    annotated.key("Control+z")
    np.testing.assert_array_equal(annotated.mask("kidney_left"), before)


def test_a_box_is_a_prompt(annotated, organs):
    annotated.choose("vertebra")
    i, j = (np.flatnonzero((organs[:, :, K] == phantom.LABELS["vertebra"]).any(a)) for a in (1, 0))
    annotated.key("r")
    annotated.drag([int(i[0]), int(j[0]), K], [int(i[-1]), int(j[-1]), K])
    annotated.page.screenshot(path=SCREENSHOTS / "ohif_live_box.png")
    mask = annotated.mask("vertebra")
    assert dice(mask[:, :, K], organs[:, :, K] == phantom.LABELS["vertebra"]) > 0.8 and mask.any((0, 1)).sum() > 1
    annotated.key("Control+z")
    assert not annotated.mask("vertebra").any()
    annotated.key("Control+y")
    np.testing.assert_array_equal(annotated.mask("vertebra"), mask)
    annotated.drag([int(i[0]) + 1, int(j[0]), K], [int(i[-1]) + 1, int(j[-1]), K])
    assert annotated.marks("BoxPrompt") == 1, "the newer box of a slice counts"
    annotated.key("Delete")
    assert not annotated.mask("vertebra").any()


def test_an_outline_is_the_mask_of_its_slice(annotated, organs):
    i, j, k = voxel_in(organs, "kidney_left", K)
    circle = [(round(i + 9 * np.cos(a)), round(j + 9 * np.sin(a)), k) for a in np.linspace(0, 2 * np.pi, 16)]
    annotated.key("l")
    annotated.drag(*circle)
    annotated.page.screenshot(path=SCREENSHOTS / "ohif_live_outline.png")
    mask, distance = annotated.mask("kidney_left"), np.hypot(*(np.indices(organs.shape[:2]) - np.reshape((i, j), (2, 1, 1))))
    assert mask[:, :, K][distance < 8].all() and not mask[:, :, K][distance > 10].any()
    assert mask.any((0, 1)).sum() > 1, "the other slices follow"
    assert "annotated" in annotated.page.locator(f"[data-slice='{annotated.viewer_slice(K)}']").get_attribute("class")
    annotated.key("Control+z")
    assert not annotated.mask("kidney_left")[:, :, K][distance > 10].all()
    assert annotated.marks("OutlinePrompt") == 0


def test_the_first_click_in_another_view_counts_and_boxes_there_are_refused(annotated):
    box = annotated.frame.locator("[data-viewport-uid=mpr-coronal]").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    with annotated.page.expect_request(lambda r: "/infer/" in r.url):
        annotated.page.mouse.click(x + 20, y + 20)
    annotated.wait()
    before = annotated.mask("kidney_left")
    annotated.key("r")
    annotated.page.mouse.move(x, y)
    annotated.page.mouse.down()
    annotated.page.mouse.move(x + 60, y + 60, steps=4)
    annotated.page.mouse.up()
    annotated.expect_message("Draw boxes in the axial view")
    assert annotated.marks("BoxPrompt") == 0 and annotated.marks() == 2
    np.testing.assert_array_equal(annotated.mask("kidney_left"), before)


def test_a_box_that_was_begun_by_a_click_is_given_up_with_its_tool(annotated, organs):
    voxel = voxel_in(organs, "kidney_left", K)
    annotated.key("r")
    annotated.page.mouse.click(*annotated.position([voxel[0] - 20, voxel[1], K]))
    annotated.frame.wait_for_function("cornerstoneTools.annotation.state.getAllAnnotations().some((a) => a.metadata.toolName === 'BoxPrompt')")
    annotated.key("f")
    annotated.expect_message("Drag the mouse to draw a box.")
    assert annotated.marks("BoxPrompt") == 0
    annotated.click([voxel[0], voxel[1] + 4, K])
    assert annotated.marks() == 2


def test_other_structures_are_kept_on_request(annotated, organs):
    voxel = voxel_in(organs, "kidney_left", K)
    first = annotated.mask("kidney_left")
    annotated.key("]")
    assert annotated.page.locator("#structures option:checked").inner_text().endswith("liver")
    annotated.click([voxel[0] + 1, voxel[1], K])
    np.testing.assert_array_equal(annotated.mask("kidney_left"), first)
    annotated.page.uncheck("#keep-others")
    annotated.click([voxel[0] - 1, voxel[1] + 1, K])
    annotated.page.check("#keep-others")
    assert annotated.mask("liver")[voxel[0], voxel[1], K], "now the new mask may cover the other structure"

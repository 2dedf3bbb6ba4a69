"""Unmodified OHIF in headless Chromium with a real Orthanc and a real server: from *Next Sample* to the proposed slice."""

import json

import numpy as np
import pydicom
import pytest
import requests

from lib.imaging.volume import Volume
from lib.samples import phantom, sample_data
from lib.serving.active_learning.strategies import TARGET_DICE
from tests.serving import ohif
from tests.serving.ohif import CAMERAS, ON_SCREEN, SCREENSHOTS, playwright, to_lps, voxel_in

pytestmark = ohif.MARKS
CLIENT = "browser-00000001"  # The annotator in the browser; volumes that another one has begun are not proposed.
ORGANS = ("kidney_left", "liver", "aorta")  # the test uses the first one that needs a second slice
SERIES = """() => [...services.viewportGridService.getState().viewports.values()].map(
    (v) => services.displaySetService.getDisplaySetByUID(v.displaySetInstanceUIDs[0]).SeriesInstanceUID)"""


def sagittal() -> Volume:
    """Return a small CT whose slices are sagittal."""
    volume, _ = phantom.abdomen(seed=1, shape=(24, 48, 40), spacing_mm=(12.0, 5.0, 5.0))
    turn = np.zeros((4, 4))  # the new (i, j, k) are the old (j, last - k, last - i), which is right-handed as ITK sorts a series
    turn[[1, 2, 0, 3], [0, 1, 2, 3]] = 1, -1, -1, 1
    turn[[0, 2], 3] = volume.shape[0] - 1, volume.shape[2] - 1
    return Volume(np.ascontiguousarray(volume.array.transpose(1, 2, 0)[:, ::-1, ::-1]), volume.affine @ turn, "ct_sagittal")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Yield (server address, {name: SeriesInstanceUID}, {name: StudyInstanceUID}, {name: (Volume, labels or None)})."""
    folder = tmp_path_factory.mktemp("stack")
    volumes = {"ct_phantom": phantom.abdomen(), "ct_sagittal": (sagittal(), None)}
    for name, (volume, _) in volumes.items():
        sample_data.write_dicom(volume, folder / "dicom" / name, modality="CT", description=name)
    second = folder / "dicom" / "ct_second"  # will be another series of the study ct_sagittal
    volume, _ = phantom.abdomen(seed=2, shape=(32, 32, 16), spacing_mm=(10.0, 10.0, 15.0))
    sample_data.write_dicom(volume, second, modality="CT", description=second.name)
    first = pydicom.dcmread(folder / "dicom" / "ct_sagittal" / "0001.dcm")
    for file in second.iterdir():
        ds = pydicom.dcmread(file)
        for field in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDescription"):
            setattr(ds, field, getattr(first, field))
        ds.SeriesNumber = 2
        ds.save_as(file)
    with ohif.stack(folder, ORGANS) as (address, _, series, studies):
        yield address, series, studies, volumes


@pytest.fixture(scope="module")
def browser():
    with ohif.chromium() as chromium:
        yield chromium


def run(address, image, clicks):
    """Send what OHIF's button *Run* sends."""
    params = {"foreground": clicks, "background": [], "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    params["client_id"] = CLIENT
    answer = requests.post(f"{address}/infer/sam2?image={image}&output=image", data={"params": json.dumps(params)}, timeout=300)
    assert answer.ok, answer.text


def click(page, frame, structure, point_lps_mm):
    """Choose a structure in the bar, click on a point (mm LPS) of the axial viewport, and wait for the mask."""
    names = [text[2:] for text in page.locator("#structures option").all_inner_texts()]
    page.select_option("#structures", index=names.index(structure))
    x, y = frame.evaluate(ON_SCREEN, list(point_lps_mm))
    box = page.locator("#ohif").bounding_box()
    with page.expect_response(lambda r: "/infer/sam2?" in r.url, timeout=200_000) as answer:
        # Rounded here, because browsers cut off fractions, and a pixel may be half a voxel.
        page.mouse.click(round(box["x"] + x), round(box["y"] + y))
    assert answer.value.ok
    page.wait_for_selector("body[data-busy=false]")


def newest_record(address, image):
    return max(records_of(address, image).values(), key=lambda r: r["time"])


def records_of(address, image):
    return requests.get(f"{address}/sam2/state", params={"image": image}, timeout=30).json()["structures"]


def wait_for_arrival(page, t):
    """Return the frame of OHIF and its cameras once the page has arrived at slice t."""
    page.wait_for_selector(f"body[data-arrived='{t}']", timeout=150_000)
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    page.wait_for_timeout(4_000)  # time in which OHIF must not move it away again
    frame = next(f for f in page.frames if "/ohif/" in f.url and f != page.main_frame)
    return frame, frame.evaluate(CAMERAS)


def shows(camera, point_lps_mm):
    return abs(np.dot(np.subtract(camera["focal"], point_lps_mm), camera["normal"])) < 0.02


def test_next_sample_leads_to_the_slice_and_the_button_on_to_the_next(stack, browser):
    address, series, studies, volumes = stack
    image, (volume, labels) = series["ct_phantom"], volumes["ct_phantom"]
    slices = labels.shape[2]
    for organ in ORGANS:
        start = int((labels == phantom.LABELS[organ]).sum((0, 1)).argmax())
        run(address, image, [voxel_in(labels, organ, start)])
        if newest_record(address, image)["volume_dice"] < TARGET_DICE:
            break
    first = newest_record(address, image)["proposal"]
    number = slices - first["slice"]  # OHIF counts from the head, this series from the feet

    context = browser.new_context(viewport={"width": 1500, "height": 900})
    context.add_cookies([{"name": "sam2_client", "value": CLIENT, "url": address}])
    viewer = context.new_page()
    ohif.connect(viewer, address, studies["ct_phantom"])
    viewer.click("label.tab-label:has-text('Active Learning')")
    viewer.get_by_role("button", name="Next Sample").click()
    form = viewer.locator(".nextSampleForm table")
    form.wait_for()
    text = form.inner_text()
    assert f"axial slice {number} of {slices}" in text and f"expected Dice {first['expected_dice']:.2f}" in text
    viewer.screenshot(path=SCREENSHOTS / "ohif_next_sample.png")

    with context.expect_page() as opened:
        form.get_by_role("link", name=image).click()
    page = opened.value
    frame, cameras = wait_for_arrival(page, first["slice"])
    point = to_lps(volume, first["point"])
    assert cameras["mpr-axial"]["number"] == number and f"{number}/{slices}" in cameras["mpr-axial"]["text"]
    assert all(shows(c, point) for c in cameras.values()), (cameras, point)
    bar = page.locator("#bar").inner_text()
    assert f"slice {number} of {slices} (voxel slice {first['slice']})" in bar and f"{first['expected_dice']:.2f}" in bar
    assert first["reason"] in bar
    voxel = voxel_in(labels, organ, first["slice"])
    click(page, frame, organ, to_lps(volume, voxel))
    page.screenshot(path=SCREENSHOTS / "ohif_next_slice.png")
    assert records_of(address, image)[organ]["annotated"] == [first["slice"]]
    second = newest_record(address, image)["proposal"]
    assert second["slice"] != first["slice"]
    page.evaluate("window.samePage = true")
    page.get_by_role("button", name="Next slice").click()
    frame, cameras = wait_for_arrival(page, second["slice"])
    assert cameras["mpr-axial"]["number"] == slices - second["slice"] and shows(cameras["mpr-axial"], to_lps(volume, second["point"]))
    assert page.evaluate("window.samePage"), "without loading the page again"
    assert f"voxel slice {second['slice']})" in page.locator("#bar").inner_text()
    page.screenshot(path=SCREENSHOTS / "ohif_next_slice_2.png")

    page.on("dialog", lambda dialog: dialog.accept())  # The work is not saved.
    page.get_by_role("link", name="all volumes").click()
    captions = page.locator("article").first.locator("figure.proposed").all_inner_texts()
    assert any(f"slice {second['slice']} " in s and f"OHIF {slices - second['slice']}/{slices}" in s for s in captions), captions
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("(i) => i.decode()")  # fails if it is not an image
    assert "untouched" in page.locator("article").nth(1).inner_text()
    page.set_viewport_size({"width": 1240, "height": 400})
    page.screenshot(path=SCREENSHOTS / "page.png", full_page=True)
    context.close()


def test_sagittal_slices_are_displayed_in_the_sagittal_viewport(stack, browser):
    address, series, _, volumes = stack
    volume, _ = volumes["ct_sagittal"]
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(f"{address}/sam2/ohif?image={series['ct_sagittal']}&slice=4")
    _, cameras = wait_for_arrival(page, 4)
    assert cameras["mpr-sagittal"]["number"] == 20 and shows(cameras["mpr-sagittal"], to_lps(volume, (0, 0, 4)))
    assert "sagittal slice 20 of 24 (voxel slice 4)" in page.locator("#bar").inner_text()
    page.close()


def test_the_right_series_of_a_study_is_shown(stack, browser):
    address, series, _, _ = stack
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    for name, slices in (("ct_sagittal", 24), ("ct_second", 16)):
        page.goto(f"{address}/sam2/ohif?image={series[name]}&slice=3")
        frame, cameras = wait_for_arrival(page, 3)
        assert frame.evaluate(SERIES) == [series[name]] * 3 and f" of {slices} " in page.locator("#bar").inner_text()
    assert cameras["mpr-axial"]["number"] == 13
    page.close()


def test_next_slice_opens_another_study_and_failures_are_displayed(stack, browser):
    address, series, _, _ = stack
    page = browser.new_page()
    page.goto(f"{address}/sam2/ohif?image={series['ct_sagittal']}")
    page.get_by_role("button", name="Next slice").wait_for()
    page.route("**/activelearning/*", lambda route: route.fulfill(status=502, json={"detail": "The DICOM store does not answer."}))
    page.get_by_role("button", name="Next slice").click()
    playwright.expect(page.locator("#message")).to_have_text("The DICOM store does not answer.")
    page.unroute("**/activelearning/*")
    page.get_by_role("button", name="Next slice").click()
    page.wait_for_url(f"**/sam2/ohif?image={series['ct_phantom']}&slice=*")
    page.close()


def test_submit_saves_the_segments_in_the_dicom_store(stack, browser):
    address, series, _, volumes = stack
    image, (volume, labels) = series["ct_phantom"], volumes["ct_phantom"]
    k = int((labels == phantom.LABELS["aorta"]).sum((0, 1)).argmax())
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(f"{address}/sam2/ohif?image={image}&slice={k}")
    frame, _ = wait_for_arrival(page, k)
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("There is no segment yet").wait_for()
    click(page, frame, "aorta", to_lps(volume, voxel_in(labels, "aorta", k)))
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("Saved as the final label.").wait_for()
    saved = requests.get(f"{address}/datastore/label/info", params={"label": image, "tag": "final"}, timeout=30).json()
    assert [row["name"] for row in saved["label_info"]] == ["aorta"]
    page.close()

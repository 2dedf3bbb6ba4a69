"""Annotating in the unmodified OHIF: a click, its correction, a second structure, and the DICOM SEG that the store holds then."""

import io
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
import requests
from scipy import ndimage

from lib.imaging.metrics import dice
from lib.samples import phantom, sample_data
from tests.serving import ohif
from tests.serving.ohif import SCREENSHOTS, SUBMIT, Viewer, voxel_in

pytestmark = ohif.MARKS
SEGMENTS = {"kidney_left": 1, "liver": 2, "vertebra": 3}  # as OHIF numbers them, alphabetically; the liver stays empty
NAME = "ct_annotated"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The stored series: server, orthanc (addresses), image (SeriesInstanceUID), study, volume, organs (I, J, K), folder."""
    folder = tmp_path_factory.mktemp("stack")
    volume, organs = phantom.abdomen(shape=(96, 96, 32), spacing_mm=(3.6, 3.6, 7.5))
    sample_data.write_dicom(volume, folder / "dicom", modality="CT", description=NAME)
    with ohif.stack(folder, SEGMENTS) as (server, orthanc, series, studies):
        yield SimpleNamespace(
            server=server, orthanc=orthanc, image=series[NAME], study=studies[NAME], volume=volume, organs=organs, folder=folder / "dicom"
        )  # fmt: skip


@pytest.fixture(scope="module")
def viewer(store):
    with ohif.chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        ohif.connect(page, store.server, store.study)
        yield Viewer(page, store.volume)


@pytest.fixture(scope="module")
def clicked(viewer, store):
    """The state after a click on the left kidney: click, labels, voxels of the slice, and their colours before and after."""
    click = voxel_in(store.organs, "kidney_left", viewer.k)
    viewer.pick("kidney_left")
    viewer.click(click)
    voxels = [(i, j, viewer.k) for i, j in np.ndindex(store.organs.shape[:2]) if np.hypot(i - click[0], j - click[1]) > 3.5]
    before = viewer.colours(voxels)  # without the voxels under the mark of the click
    labels = viewer.run()
    viewer.page.screenshot(path=SCREENSHOTS / "ohif_click.png")
    return SimpleNamespace(click=click, labels=labels, voxels=np.array(voxels), before=before, after=viewer.colours(voxels))


@pytest.fixture(scope="module")
def corrected(viewer, store, clicked):
    """The state after a negative click on an error of the mask, or else on its rim: negative (the voxel), labels."""
    mask = clicked.labels[:, :, viewer.k] == SEGMENTS["kidney_left"]
    wrong = mask & (store.organs[:, :, viewer.k] != phantom.LABELS["kidney_left"])
    rim = np.argwhere(wrong if wrong.any() else mask)
    negative = [*map(int, rim[np.hypot(*(rim - clicked.click[:2]).T).argmax()]), viewer.k]
    viewer.pick("background")
    viewer.click(negative)
    viewer.pick("kidney_left")
    labels = viewer.run()
    viewer.page.screenshot(path=SCREENSHOTS / "ohif_negative.png")
    return SimpleNamespace(negative=negative, labels=labels)


@pytest.fixture(scope="module")
def second(viewer, store, corrected):
    """The state after a click on a vertebra: click, labels."""
    click = voxel_in(store.organs, "vertebra", viewer.k)
    viewer.pick("vertebra")
    viewer.click(click)
    labels = viewer.run()
    viewer.page.screenshot(path=SCREENSHOTS / "ohif_second_label.png")
    return SimpleNamespace(click=click, labels=labels)


def test_the_mask_lies_under_the_click(store, clicked):
    mask = clicked.labels == SEGMENTS["kidney_left"]
    assert set(np.unique(clicked.labels)) == {0, SEGMENTS["kidney_left"]} and mask[tuple(clicked.click)]
    organ = store.organs == phantom.LABELS["kidney_left"]
    assert dice(mask, organ) > 0.6, "on the grid of the stored series, not mirrored"
    assert not mask[ndimage.distance_transform_edt(~organ, sampling=store.volume.spacing_mm) > 30].any(), "nothing far away"


def test_the_mask_is_drawn_in_the_colour_of_its_segment(viewer, clicked):
    mask = clicked.labels[:, :, viewer.k] > 0
    inside, outside = (ndimage.binary_erosion(m, border_value=1)[tuple(clicked.voxels.T[:2])] for m in (mask, ~mask))
    assert inside.sum() > 10 and outside.sum() > 5000
    np.testing.assert_array_equal(clicked.after[outside], clicked.before[outside])
    assert np.ptp(clicked.before[inside], axis=1).max() <= 3, "grey before"
    row = viewer.tab.locator("tr.clickable-row", has=viewer.page.get_by_text("kidney_left", exact=True))
    colour = row.locator(".segColor").evaluate("(e) => getComputedStyle(e).backgroundColor.match(/[0-9]+/g).map(Number)")
    hue, tint = colour - np.mean(colour), clicked.after[inside] - clicked.after[inside].mean(1, keepdims=True)
    strength = np.linalg.norm(tint, axis=1)
    assert strength.min() > 15 and (tint @ hue / strength / np.linalg.norm(hue)).min() > 0.95


def test_a_click_on_background_removes_it_from_the_mask(clicked, corrected):
    negative = tuple(corrected.negative)
    assert clicked.labels[negative] == SEGMENTS["kidney_left"] and corrected.labels[negative] == 0
    assert corrected.labels[tuple(clicked.click)] == SEGMENTS["kidney_left"]


def test_a_second_label_leaves_the_first_as_it_is(store, corrected, second):
    assert set(np.unique(second.labels)) == {0, SEGMENTS["kidney_left"], SEGMENTS["vertebra"]}
    assert second.labels[tuple(second.click)] == SEGMENTS["vertebra"]
    np.testing.assert_array_equal(second.labels == SEGMENTS["kidney_left"], corrected.labels == SEGMENTS["kidney_left"])
    assert dice(second.labels == SEGMENTS["vertebra"], store.organs == phantom.LABELS["vertebra"]) > 0.6


def test_submitting_stores_a_dicom_seg(viewer, store, second):
    assert viewer.page.evaluate(SUBMIT, store.image) == 200
    all_series = requests.get(f"{store.orthanc}/series?expand", timeout=30).json()
    new = [s for s in all_series if s["MainDicomTags"]["Modality"] == "SEG"]
    assert len(new) == 1 and len(new[0]["Instances"]) == 1
    file = requests.get(f"{store.orthanc}/instances/{new[0]['Instances'][0]}/file", timeout=30).content
    seg = hd.seg.segread(io.BytesIO(file))
    assert seg.StudyInstanceUID == store.study
    assert [r.SeriesInstanceUID for r in seg.ReferencedSeriesSequence] == [store.image]
    numbers = {seg.get_segment_description(n).segment_label: n for n in seg.segment_numbers}
    assert numbers.keys() == {"kidney_left", "vertebra"}

    slices = {s.SOPInstanceUID: s for f in sorted(store.folder.glob("*.dcm")) if (s := pydicom.dcmread(f, stop_before_pixels=True))}
    for frame in seg.PerFrameFunctionalGroupsSequence:  # each frame lies where its source slice lies
        source = slices[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(position, float), np.array(source.ImagePositionPatient, float), atol=1e-2)
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(np.array(orientation, float), np.array(source.ImageOrientationPatient, float), atol=1e-4)
    for name, number in numbers.items():
        stored = seg.get_pixels_by_source_instance(
            list(slices), segment_numbers=[number], assert_missing_frames_are_empty=True, ignore_spatial_locations=True
        )  # fmt: skip
        displayed_mask = second.labels == SEGMENTS[name]  # slice k is the k-th file, as `write_dicom` names them
        np.testing.assert_array_equal(stored[..., 0].transpose(2, 1, 0), displayed_mask, err_msg=name)


def test_clear_all_points_and_run_empty_the_structure_and_leave_the_others(viewer, second):
    viewer.tab.get_by_text("Clear All Points", exact=True).click()
    viewer.page.wait_for_function(f"({ohif.CLICKS})() === 0")
    labels = viewer.run()
    assert not (labels == SEGMENTS["vertebra"]).any()
    np.testing.assert_array_equal(labels == SEGMENTS["kidney_left"], second.labels == SEGMENTS["kidney_left"])

"""Annotating in the unmodified OHIF on a plain studies folder: no DICOM store, one server."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk

from lib.imaging.metrics import dice
from lib.imaging.volume import Volume
from lib.imaging.writers import write_image
from lib.samples import phantom, sample_data
from tests.imaging.real_cases import frame_points
from tests.serving import ohif
from tests.serving.ohif import SCREENSHOTS, SUBMIT, Viewer, voxel_in

pytestmark = ohif.FOLDER_MARKS
SEGMENTS = {"kidney_left": 1, "liver": 2, "vertebra": 3}


def mirrored(volume: Volume, organs: np.ndarray, axis: int) -> tuple[Volume, np.ndarray]:
    """Return the same image and labels with the voxels along an axis counted the other way round."""
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1, volume.shape[axis] - 1
    return Volume(np.flip(volume.array, axis), volume.affine @ turn), np.flip(organs, axis)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write the images of a studies folder, and yield the folder above it and {id: (Volume, labels (I, J, K))}."""
    folder = tmp_path_factory.mktemp("folder")
    studies = folder / "studies"
    volume, organs = ohif.small_phantom()
    sample_data.write_dicom(volume, studies / "series", modality="CT", description="ct_series")
    left_handed = mirrored(volume, organs, 2)
    nib.save(nib.Nifti1Image(left_handed[0].array, left_handed[0].affine), studies / "left_handed.nii.gz")
    fractions, fraction_organs = mirrored(volume, organs, 0)
    fractions = Volume(fractions.array.astype(np.float32) / 1000, fractions.affine)
    write_image(fractions, studies / "fractions.nrrd")
    yield folder, {"series": (volume, organs), "left_handed": left_handed, "fractions": (fractions, fraction_organs)}


@pytest.fixture(scope="module")
def server(images):
    with ohif.folder_server(images[0], SEGMENTS) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with ohif.chromium() as chromium:
        yield chromium


@pytest.mark.parametrize("image", ["left_handed", "fractions", "series"])
def test_what_is_displayed_and_saved_lies_voxel_by_voxel_on_the_image(images, server, browser, image):
    folder, volumes = images
    volume, organs = volumes[image]
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    known = requests.get(f"{server}/sam2/state", params={"image": image}, timeout=30).json()
    ohif.connect(page, server, known["StudyInstanceUID"])
    viewer = Viewer(page, volume)
    click = voxel_in(organs, "kidney_left", viewer.k)
    viewer.pick("kidney_left")
    viewer.click(click)
    displayed = viewer.run()
    page.screenshot(path=SCREENSHOTS / f"ohif_folder_{image}.png")
    mask = displayed == SEGMENTS["kidney_left"]
    assert mask[tuple(click)] and dice(mask, organs == phantom.LABELS["kidney_left"]) > 0.6
    state = requests.get(f"{server}/sam2/state", params={"image": image}, timeout=30).json()
    assert list(state["structures"]) == ["@{},{},{}".format(*click)], "the record counts voxels as the image file does"

    assert page.evaluate(SUBMIT, known["SeriesInstanceUID"]) == 200
    page.close()
    (file,) = (folder / "studies" / "labels" / "final").glob(f"{image}.n*")
    saved = nib.load(file) if file.name.endswith(".nii.gz") else sitk.ReadImage(str(file))
    array = np.asarray(saved.dataobj) if isinstance(saved, nib.Nifti1Image) else sitk.GetArrayFromImage(saved).transpose(2, 1, 0)
    np.testing.assert_array_equal(array, displayed)
    if image == "series":
        points = np.concatenate([p for _, p in frame_points(pydicom.dcmread(file.with_name("series.dcm")))]) * (-1, -1, 1)
        voxels = np.rint((points - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T).astype(int)
        assert sorted(map(tuple, voxels)) == sorted(map(tuple, np.argwhere(displayed))), "the DICOM SEG marks the same voxels"

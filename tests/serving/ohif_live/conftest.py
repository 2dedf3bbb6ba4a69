"""OHIF with the bar above it on a plain studies folder, and an image of it that most tests of a module share."""

import nibabel as nib
import pytest

from lib.samples import sample_data
from tests.serving import ohif, ohif_page
from tests.serving.ohif import voxel_in
from tests.serving.ohif_live.kidney_image import LABELS, K
from tests.serving.ohif_page import AnnotationPage
from tests.serving.test_ohif_folder import mirrored


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write the images of a studies folder, and yield the folder above it and {id: (Volume, labels (I, J, K))}."""
    folder = tmp_path_factory.mktemp("folder")
    volume, organs = ohif.small_phantom()
    sample_data.write_dicom(volume, folder / "studies" / "series", modality="CT", description="ct_series")
    left_handed = mirrored(volume, organs, 2)
    images = {"series": (volume, organs)}
    for name in ("ct", "ct_saved", "ct_shared"):
        nib.save(nib.Nifti1Image(left_handed[0].array, left_handed[0].affine), folder / "studies" / f"{name}.nii.gz")
        images[name] = left_handed
    yield folder, images


@pytest.fixture(scope="module")
def server(images):
    with ohif.folder_server(images[0], LABELS) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with ohif.chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def organs(images):
    return images[1]["ct"][1]


@pytest.fixture(scope="module")
def opened(images, server, browser):
    """The image `ct`, which most tests share."""
    page = AnnotationPage(ohif_page.new_page(browser), f"{server}/sam2/ohif?image=ct", images[1]["ct"][0])
    yield page
    page.close()


@pytest.fixture
def annotated(opened, organs):
    """The image after a click on the left kidney, without anything else; the click is on slice K."""
    for structure in ("vertebra", "liver", "kidney_left"):
        opened.choose(structure)
        if opened.mask(structure).any() or opened.marks():
            opened.press("Clear")
    opened.press("+ Inside")
    opened.go_to(K)
    opened.click(voxel_in(organs, "kidney_left", K))
    return opened

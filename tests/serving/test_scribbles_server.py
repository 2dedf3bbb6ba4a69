"""Tests of painted slices and scribbles through a real server, sent as 3D Slicer's plugin sends them."""

import nibabel as nib
import numpy as np
import pytest

from lib.imaging.readers import read_volume
from tests.serving.test_server import client, server, studies  # noqa: F401, pytest finds the fixtures by these names

pytestmark = pytest.mark.server

LABEL_INFO = [{"name": name, "id": n} for n, name in enumerate(("liver", "spleen", "background_scribbles", "foreground_scribbles"), 1)]


@pytest.fixture
def image(studies):  # noqa: F811
    return read_volume(studies / "small.nii.gz")


@pytest.fixture
def send(client, image, tmp_path):  # noqa: F811
    """Return a function that uploads a label map and returns the mask, bool (I, J, K), and the JSON answer."""
    def send(labels, selected="spleen", **fields):
        path = tmp_path / "upload.nii.gz"
        nib.save(nib.Nifti1Image(labels, image.affine), path)
        params = {"label_info": LABEL_INFO, "selected_label_name": selected, "roi": [], "result_extension": ".nii.gz", **fields}
        out, answer = client.infer("sam2_scribbles", "small", params, label_in=str(path))
        return read_volume(out).array > 0, answer

    return send


def painted(image, *slices, value=2):
    """Return a label map with a rectangle on some slices and another segment on all of them."""
    labels = np.zeros(image.shape, np.uint8)
    labels[:3, :3] = 1
    labels[10:25, 8:20, list(slices)] = value
    return labels


def test_painted_slices_come_back_as_painted_and_spread(send, image):
    labels = painted(image, 2)
    mask, answer = send(labels)
    assert answer["annotated_slices"] == [2]
    np.testing.assert_array_equal(mask[..., 2], labels[..., 2] == 2)


def test_only_what_the_user_edited_is_taken_from_an_answer(send, image):
    labels = painted(image, 3)
    mask, _ = send(labels)
    labels[mask] = 2
    labels[10:25, 8:20, 5] = 2
    labels[10:25, 20:24, 5] = 2  # This is larger than any answer.
    again, answer = send(labels)
    assert set(answer["annotated_slices"]) == {3, 5}
    np.testing.assert_array_equal(again[..., 5], labels[..., 5] == 2)


def test_an_emptied_slice_stays_empty(send, image):
    mask, _ = send(painted(image, 1))
    labels = painted(image)
    labels[mask] = 2
    labels[..., 2][labels[..., 2] == 2] = 0
    if not mask[..., 2].any():
        labels[12:20, 9:15, 2] = 0
    again, answer = send(labels)
    assert not again[..., 2].any()


def test_strokes_are_clicks(send, image):
    labels = painted(image)
    labels[12:20, 10, 4] = 4
    labels[30:35, 25, 4] = 3
    mask, answer = send(labels, "bone")
    assert answer["annotated_slices"] == [4]
    assert mask[12, 10, 4] and mask[19, 10, 4] and not mask[30, 25, 4]


def test_an_empty_upload_is_refused_with_a_sentence(send, image, client):  # noqa: F811
    with pytest.raises(Exception, match="Nothing says where the structure is"):
        send(np.zeros(image.shape, np.uint8), "kidney")
    with pytest.raises(Exception, match="Nothing was painted"):
        client.infer("sam2_scribbles", "small", {"selected_label_name": "kidney"})

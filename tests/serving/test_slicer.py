"""Tests of the client of 3D Slicer's plugin, and of what the plugin computes around a request, with a real server.

The volumes hold a bright box. SimpleITK, which knows nothing of this project, tells where an image and its mask lie in space.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests
import SimpleITK as sitk

from tests.conftest import ORIGIN_MM
from tests.serving.processes import free_port
from tests.serving.slicer import (
    BOX,
    CENTRE,
    FILES,
    SlicerUser,
    box_volume,
    dice,
    refused,
    voxel_to_lps,
    voxels,
    write_images,
)
from tests.serving.test_server import run_server

pytestmark = pytest.mark.server

ODD_NAMES = ["Leber, ä", "肝", 'say "x"', "two\nlines", "ends\n\nhere", "C:\\new", "a:=b", "x" * 5000, "#1"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Return a folder with the images of `write_images`."""
    folder = tmp_path_factory.mktemp("studies")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def sessions(studies, tmp_path_factory):
    """Return the server's folder of sessions with two sessions of an earlier run: "kept", and "over", which has expired."""
    folder = tmp_path_factory.mktemp("sessions")
    for name, accessed in (("kept", time.time()), ("over", 1.7e9)):
        (folder / name).mkdir()
        image = shutil.copy(studies / "ras.nii.gz", folder / name)
        meta = {"name": name, "path": str(folder / name), "image": str(image), "last_access_ts": int(accessed), "expiry": 3600}
        (folder / name / "meta.info").write_text(json.dumps(meta))
        os.utime(folder / name, (accessed, accessed))
    return folder


@pytest.fixture(scope="module")
def server(studies, sessions, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_SESSION_PATH", str(sessions))
        conf = ["--conf", "versions", str(tmp_path_factory.mktemp("versions"))]
        yield from run_server(studies, tmp_path_factory.mktemp("elsewhere"), free_port(), conf)


@pytest.fixture
def slicer(server, tmp_path):
    return SlicerUser(server, tmp_path, "anna")


@pytest.fixture
def label_file(studies, tmp_path):
    """Return a function that writes a label map on the grid of an image and returns its path."""
    def write_labels(labels, image="ras"):
        path = tmp_path / "labels.nii.gz"
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), nib.load(studies / f"{image}.nii.gz").affine), path)
        return str(path)

    return write_labels


# --- geometry --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize("name", FILES)
def test_the_mask_lies_where_the_box_lies(slicer, studies, name, ending):
    image = sitk.ReadImage(str(studies / (name + FILES[name][2])))
    box = box_volume(int(np.argmax(image.GetSpacing())))[1]
    image_matrix, image_origin = voxel_to_lps(image)
    click = np.rint(np.argwhere(box).mean(0)).astype(int).tolist()
    file, mask, _ = slicer.ask(name, [click], result_extension=ending)
    mask_matrix, mask_origin = voxel_to_lps(sitk.ReadImage(str(file)))
    points_lps_mm = np.argwhere(mask) @ mask_matrix.T + mask_origin
    points_ijk = (points_lps_mm - image_origin) @ np.linalg.inv(image_matrix).T
    low, high = np.argwhere(box).min(0), np.argwhere(box).max(0)
    assert (points_ijk > low - 1.01).all() and (points_ijk < high + 1.01).all()
    inside = box[tuple(np.rint(points_ijk).astype(int).T)].sum()
    assert 2 * inside / (len(points_ijk) + box.sum()) > 0.8


@pytest.mark.parametrize("flip", range(8))
def test_regions_in_every_flip_and_beyond_the_volume(slicer, flip):
    pairs = [[-30, 22], [14, 99], [4, 30]]  # This region holds only a part of the box.
    roi = [v for n, pair in enumerate(pairs) for v in (pair[::-1] if flip >> n & 1 else pair)]
    _, mask, _ = slicer.ask(foreground=[[18, 18, 5]], roi=roi)
    inside = np.argwhere(mask)
    assert mask[18, 18, 5] and (inside >= [0, 14, 4]).all() and (inside <= [22, 39, 9]).all()


def test_a_region_without_clicks_is_a_box_on_the_displayed_slice(slicer):
    roi = [29, 6, 4, 25, 6, 1]
    for displayed, filled in ((5, 5), (77, 4)):  # 3D Slicer sends millimetres in this field, so the value may lie anywhere.
        _, mask, _ = slicer.ask(model="sam2_slice", foreground=[], roi=roi, slice=displayed)
        assert np.flatnonzero(mask.any((0, 1))).tolist() == [filled]
        assert dice(mask[..., filled], BOX[..., filled]) > 0.8
    with refused("empty"):
        slicer.ask(model="sam2_slice", foreground=[], roi=[12, 12, 8, 8, 2, 7], slice=5)


# --- sessions --------------------------------------------------------------------------------------------------------
def test_sessions_outlive_the_server_until_they_expire(slicer, sessions):
    assert slicer.ask("My/volume", session="kept")[1].any()  # The name of a node in 3D Slicer may be anything.
    assert not (sessions / "over").exists()
    with refused("session", 404):
        slicer.ask("ras", session="over")


def test_an_uploaded_volume_is_segmented_in_a_session(slicer, server, studies, sessions, tmp_path):
    ben = SlicerUser(server, tmp_path, "ben")
    anna_session = slicer.client.create_session(str(studies / "ras.nii.gz"))["session_id"]
    ben_session = ben.client.create_session(str(studies / "left_handed.nrrd"))["session_id"]
    assert Path(slicer.client.get_session(anna_session)["image"]).read_bytes() == (studies / "ras.nii.gz").read_bytes()
    for model in ("sam2", "sam2_slice"):
        for user, session, name in ((slicer, anna_session, "ras"), (ben, ben_session, "left_handed")):
            _, mask, _ = user.ask("My volume", session=session, model=model)
            np.testing.assert_array_equal(mask, user.ask(name, model=model)[1])
            assert mask[tuple(CENTRE[0])] and (mask.sum((0, 1)) > 0).sum() == (1 if model == "sam2_slice" else 4)
    slicer.client.remove_session(anna_session)
    assert not (sessions / anna_session).exists()
    with refused("session", 404):
        slicer.client.get_session(anna_session)
    with refused("session", 404):
        slicer.client.remove_session(anna_session)
    with refused(".", 404):
        slicer.ask("My volume", session=anna_session)
    assert ben.ask("My volume", session=ben_session)[1].any()
    shutil.rmtree(sessions / ben_session)  # The server removes expired sessions in this way.
    with refused(".", 404):
        ben.ask("My volume", session=ben_session)


@pytest.mark.parametrize("image", ["My volume", "", "ras"])
@pytest.mark.parametrize("session", ["0b6f-unknown", "../..", "a b\n%00ä"])
def test_an_unknown_session_never_means_another_image(slicer, image, session):
    with refused("session"):
        slicer.ask(image, session=session)


def test_params_never_name_another_image(slicer, studies):
    path = str(studies / "sagittal.nrrd")  # This image has another shape.
    for name, value in (("image", path), ("image", "sagittal"), ("session", {"image": path}), ("session_id", "kept")):
        file, _ = slicer.client.infer("sam2", "ras", {"foreground": CENTRE, "result_extension": ".nrrd", name: value})
        assert voxels(file).shape == BOX.shape


def test_what_is_no_image_gets_no_session_but_a_sentence(slicer, tmp_path):
    (tmp_path / "notes.nii.gz").write_text("not an image")
    with refused("damaged", 422):
        slicer.client.create_session(str(tmp_path / "notes.nii.gz"))


def test_scribbles_in_a_session_take_from_an_answer_only_what_was_edited(slicer, studies, label_file):
    session = slicer.client.create_session(str(studies / "ras.nii.gz"))["session_id"]
    fields = {"label_info": [{"name": "box", "id": 1}], "session": session, "model": "sam2_scribbles"}
    _, mask, answer = slicer.ask("My volume", upload=label_file(BOX & (np.arange(10) == 4)), **fields)
    assert answer["annotated_slices"] == [4] and mask[..., 5].any()
    mask[20:24, 30:34, 6] = True
    _, _, answer = slicer.ask("My volume", upload=label_file(mask), **fields)
    assert set(answer["annotated_slices"]) == {4, 6}


# --- names of labels -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_comes_back_as_the_name_of_the_segment(slicer, name):
    file, mask, _ = slicer.ask(label=name, result_extension=".seg.nrrd")
    assert mask.any() and sitk.ReadImage(str(file)).GetMetaData("Segment0_Name") == name


@pytest.mark.parametrize("name", [None, 5, ["box"], {"a": 1}, " ", "/liver", "\ud800", "/tmp/\0", "/tmp/no such file", "../../etc/passwd"])
def test_values_that_are_no_names_are_ignored_or_refused_with_a_sentence(slicer, name):
    try:
        file, mask, _ = slicer.ask(label=name, result_extension=".seg.nrrd")
    except Exception as e:
        assert re.search(r'Status: 4\d\d; Response: {"detail":"[^"]', str(e)), e
    else:
        assert mask.any() and "/tmp" not in sitk.ReadImage(str(file)).GetMetaData("Segment0_Name")


def test_a_painting_comes_back_under_the_name_of_its_segment(slicer, label_file):
    info = [{"name": "box", "id": 1}]
    file, _, _ = slicer.ask(model="sam2_scribbles", upload=label_file(BOX), label_info=info, result_extension=".seg.nrrd")
    assert sitk.ReadImage(str(file)).GetMetaData("Segment0_Name") == "box"


def test_a_change_of_the_label_does_not_affect_later_answers(slicer):
    _, first, _ = slicer.ask("other", label="one")
    slicer.ask("other", [[3, 3, 1]], label="two", reset_state=True)
    for label in ("one", "three"):
        np.testing.assert_array_equal(slicer.ask("other", label=label, reset_state=True)[1], first)


# --- labels and samples ----------------------------------------------------------------------------------------------
def test_a_submitted_label_comes_back_unchanged_and_can_be_replaced(slicer, server):
    client, downloads = slicer.client, {}
    answers = [slicer.ask(result_extension=".nrrd")[0], slicer.ask(model="sam2_slice", result_extension=".nii.gz")[0]]
    for tag in ("original", "final"):
        for n, file in enumerate(answers):  # The second one replaces the first, although its extension is another.
            client.save_label("ras", str(file), tag, {"label_info": [{"name": f"box {n}", "idx": 1}]})
            downloads[tag] = Path(client.download_label("ras", tag))
            assert downloads[tag].read_bytes() == file.read_bytes()
            info = requests.get(f"{server}/datastore/label/info", params={"label": "ras", "tag": tag}, timeout=30).json()
            assert info["label_info"] == [{"name": f"box {n}", "idx": 1}] and info["client_id"] == "anna"
    assert client.datastore()["objects"]["ras"]["labels"].keys() == {"original", "final"}
    np.testing.assert_array_equal(voxels(downloads["final"]), voxels(answers[1]))
    with refused("."):
        client.save_label("nobody", str(answers[0]))
    with refused("."):
        client.download_label("ras", "never")


def test_each_of_two_users_continues_with_their_own_volume(slicer, server, tmp_path):
    ben = SlicerUser(server, tmp_path, "ben")
    volumes = ((slicer, "lps"), (ben, "flipped"))
    for user, name in volumes:
        user.ask(name)
    for user, name in (*volumes, *volumes[::-1]):
        sample = user.client.next_sample("worst_slice", {"target_dice": 1.1})
        assert sample["id"] == name and Path(sample["path"]).is_file()


# --- images that are no grey-scale volume ----------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["sam2", "sam2_slice"])
@pytest.mark.parametrize("name", ["slice", "planar", "colours", "colours_nrrd", "holes", "one_of_one"])
def test_unusual_images_give_the_right_mask(slicer, name, model):
    flat = name in ("slice", "planar")
    k = 0 if flat else 4
    _, mask, _ = slicer.ask(name, [[17, 14, k]], model=model)
    assert mask.shape == ((48, 40, 1) if flat else BOX.shape) and dice(mask[..., k], BOX[..., 4]) > 0.8


def test_images_that_are_no_volume_get_a_sentence(slicer, studies):
    for name, words in (("series", "3 channels or time points"), ("nothing", "no finite value")):
        with refused(words, 422):
            slicer.client.create_session(str(studies / f"{name}.nii.gz"))
        with refused(words, 400):
            slicer.ask(name)


# --- no prompt at all ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["sam2", "sam2_slice"])
def test_no_prompt_at_all_makes_the_mask_empty_and_undo_stays_exact(slicer, model):
    """As when the last point is deleted in Slicer, or after *Clear All Points* and *Run* in OHIF."""
    _, first, answer = slicer.ask(model=model, label="cleared")
    _, mask, empty = slicer.ask(foreground=[], model=model, label="cleared")
    assert first.any() and not mask.any() and mask.shape == first.shape
    assert (empty["annotated_slices"], empty["voxels"], empty["slices_encoded"]) == ([], 0, 0) and empty.keys() >= answer.keys()
    known = requests.get(f"{slicer.client._server_url}/sam2/state?image=ras", timeout=30).json()["structures"]
    assert "cleared" not in known
    _, again, _ = slicer.ask(model=model, label="cleared")
    np.testing.assert_array_equal(again, first)


# --- saved and uploaded labels as prompts ----------------------------------------------------------------------------
def test_chosen_slices_of_a_saved_label_are_prompts(slicer, label_file):
    reference = BOX * 2
    reference[:3, :3] = 1
    names = [{"name": "corner", "idx": 1}, {"name": "box", "idx": 2}]
    slicer.client.save_label("flipped", label_file(reference, "flipped"), "original", {"label_info": names})
    chosen = {"mask_slices": [4], "mask_tag": "original"}
    _, mask, answer = slicer.ask("flipped", [], **chosen)
    assert answer["annotated_slices"] == [4] and dice(mask, BOX) > 0.8
    np.testing.assert_array_equal(mask[..., 4], BOX[..., 4])
    _, mask, _ = slicer.ask("flipped", [], model="sam2_slice", **chosen)
    np.testing.assert_array_equal(mask, BOX & (np.arange(10) == 4))
    _, _, answer = slicer.ask("flipped", CENTRE, **chosen | {"mask_slices": [4, 8]})
    assert set(answer["annotated_slices"]) == {3, 4, 8}, "beside clicks; slice 8 says that the box is not there"
    for wrong, words in (
        ({"mask_slices": [99]}, "no slice 99"), ({"mask_slices": "x"}, "list"), ({"mask_slices": ["x"]}, "whole numbers"),
        ({"mask_slices": [0]}, "Nothing says where"), ({"mask_tag": "never"}, "never"), ({"label": "liver"}, "corner, box"),
    ):  # fmt: skip
        with refused(words, 400):
            slicer.ask("flipped", [], **chosen | wrong)


def test_chosen_slices_of_an_uploaded_label_are_prompts(slicer, label_file):
    for model, filled in (("sam2", 4), ("sam2_slice", 1)):
        _, mask, answer = slicer.ask(foreground=[], model=model, upload=label_file(BOX), mask_slices=[4])
        assert answer["annotated_slices"] == [4] and mask.any((0, 1)).sum() == filled


def test_overlapping_segments_are_not_taken_for_colours(slicer, tmp_path):
    axes = np.vstack([np.full(3, np.nan), np.diag([-1.5, -2, 5])])
    header = {"space": "left-posterior-superior", "space directions": axes, "space origin": ORIGIN_MM * np.array([-1, -1, 1])}
    header |= {"kinds": ["list", *["domain"] * 3], "Segment0_ID": "Segment_1"}
    nrrd.write(str(tmp_path / "layers.seg.nrrd"), np.stack([BOX] * 3).astype(np.uint8), header, index_order="F")
    with refused("overlapping", 400):
        slicer.ask(foreground=[], upload=str(tmp_path / "layers.seg.nrrd"))

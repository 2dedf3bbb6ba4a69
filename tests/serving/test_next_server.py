"""The next slice with a real server process: in its answers, after a kill -9, and scored by a process of its own."""

import time

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.samples import phantom
from tests.serving.faults import KillableServer
from tests.serving.test_server import slicer_client

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    for seed in (0, 1):
        volume, labels = phantom.abdomen(seed, shape=(96, 96, 24), spacing_mm=(3.5, 3.5, 9.0))
        nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / f"ct_{seed}.nii.gz")
        nib.save(nib.Nifti1Image((labels == phantom.LABELS["liver"]).astype(np.uint8), volume.affine), folder / f"reference_{seed}.nii")
    return folder


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    """Yield a server that can be killed, with a client of 3D Slicer as an attribute."""
    server = KillableServer(studies, MONAI_LABEL_DATASTORE_FILE_EXT='["*.nii.gz"]')
    server.client = slicer_client()(server.address, tmpdir=str(tmp_path_factory.mktemp("client")), client_id="anna")
    yield server
    server.kill()


def click(server, studies, image="ct_0"):
    """Click on the liver's largest slice, and return the answer (path of the mask, JSON) and the reference, bool (I, J, K)."""
    reference = np.asarray(nib.load(studies / f"reference_{image[-1]}.nii").dataobj) > 0
    t = int(reference.sum((0, 1)).argmax())
    i, j = (int(np.median(x)) for x in np.nonzero(reference[..., t]))
    return server.client.infer("sam2", image, {"label": "liver", "foreground": [[i, j, t]], "result_extension": ".nii.gz"}), reference


def test_inference_and_next_sample_name_the_same_slice_even_after_a_kill(server, studies):
    (_, answer), reference = click(server, studies)
    expected = answer["expected_dice"]
    assert len(expected) == reference.shape[2] and expected[answer["annotated_slices"][0]] == 1
    assert 0 < answer["expected_volume_dice"] <= 1
    sample = server.client.next_sample("worst_slice", {})
    assert sample["id"] == "ct_0" and sample["slice"] == answer["next_slice"]["slice"] and sample["label"] == "liver"
    server.kill()
    server.start()
    again = server.client.next_sample("worst_slice", {})
    assert {k: again[k] for k in ("id", "slice", "expected_dice", "rounds", "reason")} == {
        k: sample[k] for k in ("id", "slice", "expected_dice", "rounds", "reason")
    }  # fmt: skip
    assert server.client.next_sample("random", {})["slice"] == sample["slice"], "OHIF asks by this name"


def test_scoring_runs_beside_the_server_and_its_results_stay(server, studies):
    refused = requests.post(f"{server.address}/scoring/slice_dices", timeout=30)
    assert refused.status_code == 404 and "slice_dice, slice_quality" in refused.json()["detail"]
    click(server, studies)
    server.client.save_label("ct_0", str(studies / "reference_0.nii"), "final", {"label_info": [{"name": "liver", "idx": 1}]})
    path, _ = server.client.infer("sam2", "ct_0", {"label": "liver", "foreground": [[48, 48, 12]], "result_extension": ".nii.gz"})
    server.client.save_label("ct_0", str(path), "original", {"label_info": [{"name": "liver", "idx": 1}]})
    for method in ("slice_dice", "slice_quality"):
        assert requests.post(f"{server.address}/scoring/{method}", timeout=30).status_code == 200
        end = time.monotonic() + 120
        while (status := requests.get(f"{server.address}/scoring/", timeout=30).json())["status"] in ("SUBMITTED", "RUNNING"):
            assert time.monotonic() < end
            time.sleep(0.5)
        assert status["status"] == "DONE", status
    reference, mask = (np.asarray(nib.load(p).dataobj) > 0 for p in (studies / "reference_0.nii", path))
    dice = 2 * (reference & mask).sum((0, 1)) / np.maximum(reference.sum((0, 1)) + mask.sum((0, 1)), 1)
    dice[~(reference | mask).any((0, 1))] = 1
    server.kill()
    server.start()
    info = server.client.datastore()["objects"]["ct_0"]["image"]["info"]
    assert info["slice_dice"]["structures"]["liver"]["dice"] == pytest.approx(dice.tolist(), abs=1e-3)
    assert dice[info["slice_dice"]["worst_slice"]] == dice.min()
    assert info["slice_quality"]["structures"]["liver"]["worst_slice"] is not None
    assert server.client.next_sample("worst_slice", {})["id"] == "ct_1", "the labelled volume is done"

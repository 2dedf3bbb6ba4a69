"""Tests of a real server process with the client code of the 3D Slicer plugin that MONAI Label installs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.imaging.readers import read_volume
from lib.samples import sample_data
from tests.serving.processes import free_port, running

ROOT = Path(__file__).resolve().parents[2]
CLICK = [98, 110, 80]  # white matter of the ICBM template

pytestmark = pytest.mark.server


def slicer_client():
    """Return the class `MONAILabelClient` of the installed plugin, which runs without 3D Slicer."""
    path = Path(sys.prefix, "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
    spec = importlib.util.spec_from_file_location("slicer_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MONAILabelClient


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Return a folder with the ICBM template, a small oblique volume, one with several channels and a damaged one."""
    folder = tmp_path_factory.mktemp("studies")
    volume, _ = sample_data.icbm152()
    nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / "icbm152_t1.nii.gz")
    small = np.random.default_rng(0).integers(0, 200, (40, 30, 6), dtype=np.int16)
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.1, -0.2) @ np.diag([-1, 1, 4.0]), [10, 20, 30])
    nib.save(nib.Nifti1Image(small, oblique), folder / "small.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 4, 3), np.float32), np.eye(4)), folder / "channels.nii.gz")
    (folder / "broken.nii.gz").write_bytes((folder / "small.nii.gz").read_bytes()[:200])
    return folder


def run_server(studies: Path, working_folder: Path, port: int, conf: list[str]):
    """Run a server from another folder, with the app's absolute path as the README says, and yield its address."""
    program = Path(sys.executable).with_name("monailabel")
    command = [str(program), "start_server", "--app", str(ROOT / "apps" / "sam2"), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), *conf]
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    address = f"http://127.0.0.1:{port}"
    options = {"cwd": working_folder, "stderr": subprocess.STDOUT, "env": environment}
    with open(working_folder / "log.txt", "w") as log, running(command, f"{address}/info/", stdout=log, **options):
        yield address


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    conf = ["--conf", "labels", "spleen,liver", "--conf", "versions", str(tmp_path_factory.mktemp("versions"))]
    yield from run_server(studies, tmp_path_factory.mktemp("elsewhere"), free_port(), conf)


@pytest.fixture
def client(server, tmp_path):
    return slicer_client()(server, tmpdir=str(tmp_path), client_id="test")


def infer(client, model="sam2", image="small", **params):
    """Return the mask as a volume, the JSON answer and the path of the mask file."""
    path, answer = client.infer(model, image, params)
    return read_volume(path), answer, Path(path)


def test_info_offers_the_models_to_ohif_and_slicer(client):
    info = client.info()
    assert info["labels"] == ["spleen", "liver"]
    models = info["models"]
    assert {m: (models[m]["type"], models[m]["dimension"]) for m in models} == {
        "sam2": ("deepgrow", 3), "sam2_slice": ("deepgrow", 2), "sam2_scribbles": ("scribbles", 3)
    }  # fmt: skip
    assert {"device", "window", "axis", "direction", "z_range", "largest_cc", "checkpoint"} <= set(models["sam2"]["config"])


def test_a_click_on_the_real_sample_volume(client, studies):
    mask, answer, _ = infer(
        client, image="icbm152_t1", label="spleen", foreground=[CLICK], background=[], roi=[], result_extension=".nii.gz"
    )  # fmt: skip
    image = read_volume(studies / "icbm152_t1.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert mask.array[tuple(CLICK)] == 1 and set(np.unique(mask.array)) == {0, 1}
    filled = mask.array.any((0, 1))
    assert filled[79] and filled[81], "the mask must go on to both sides of the clicked slice"
    for stage in ("load", "encode", "prompt", "propagate", "write", "total"):
        assert answer["latencies"][stage] >= 0
    assert answer["latencies"]["encode"] > 0 and 0 < answer["slices_encoded"] <= image.shape[2]
    _, repeated, _ = infer(client, image="icbm152_t1", foreground=[CLICK], result_extension=".nii.gz")
    assert repeated["slices_encoded"] == 0 and repeated["latencies"]["propagate"] < answer["latencies"]["propagate"]


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz", ".seg.nrrd"])
def test_oblique_geometry_survives_every_format(client, studies, ending):
    mask, _, path = infer(client, foreground=[[20, 15, 3]], result_extension=ending, result_dtype="uint8", result_compress=False)
    image = read_volume(studies / "small.nii.gz")
    assert mask.shape == image.shape and mask.array[20, 15, 3] == 1
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-3)
    if ending == ".nrrd":
        assert b"encoding: raw" in path.read_bytes()[:600]


def test_ohif_gets_one_uncompressed_nrrd(server):
    params = {"foreground": [[20, 15, 3]], "background": [], "result_extension": ".nrrd", "result_dtype": "uint8",
              "result_compress": False, "restore_label_idx": False}  # fmt: skip
    answer = requests.post(f"{server}/infer/sam2?image=small&output=image", data={"params": json.dumps(params)}, timeout=60)
    assert answer.ok and answer.content.startswith(b"NRRD")
    head, _, body = answer.content.partition(b"\n\n")
    assert b"encoding: raw" in head and len(body) == 40 * 30 * 6


def test_the_slice_model_fills_one_slice(client):
    mask, _, _ = infer(client, "sam2_slice", foreground=[[20, 15, 3]], slice=3, result_extension=".nrrd")
    assert np.flatnonzero(mask.array.any((0, 1))).tolist() == [3]


@pytest.mark.parametrize("roi", [[5, 30, 4, 25, 1, 4], [30, 5, 25, 4, 4, 1], [-9, 30, 4, 99, 1, 4]])
def test_regions_may_be_unsorted_and_out_of_bounds(client, roi):
    mask, _, _ = infer(client, roi=roi, result_extension=".nrrd")
    low, high = np.sort(np.reshape(roi, (3, 2)), 1).T
    inside = np.argwhere(mask.array)
    assert (inside >= np.maximum(low, 0)).all() and (inside <= high).all()


@pytest.mark.parametrize("image, params, status, words", [
    ("small", {"background": [[1, 1, 1]]}, 400, "click"),
    ("small", {"foreground": [[99, 1, 1]]}, 400, "outside"),
    ("small", {"foreground": [["a", 1, 1]]}, 400, "three numbers"),
    ("small", {"foreground": [[1, 1, 1]], "background": [[1, 1, 1]]}, 400, "both"),
    ("small", {"roi": [5, 5, 4, 4, 1, 4]}, 400, "empty"),
    ("small", {"roi": [50, 60, 4, 20, 1, 4]}, 400, "outside"),
    ("small", {"foreground": [[1, 1, 1]], "window": "soft"}, 400, "window"),
    ("small", {"foreground": [[1, 1, 1]], "axis": "5"}, 400, "axis"),
    ("small", {"foreground": [[1, 1, 1]], "z_range": "a,b"}, 400, "z_range"),
    ("small", {"foreground": [[1, 1, 1]], "checkpoint": "/etc/passwd"}, 400, "checkpoint"),
    ("small", {"foreground": [[1, 1, 1]], "result_extension": ".exe"}, 400, "endings"),
    ("small", {"foreground": [[1, 1, 1]], "result_dtype": "foo"}, 400, "dtype"),
    ("channels", {"foreground": [[1, 1, 1]]}, 400, "channel"),
    ("broken", {"foreground": [[1, 1, 1]]}, 400, "damaged"),
    ("nobody", {"foreground": [[1, 1, 1]]}, 404, "no such image"),
])  # fmt: skip
def test_wrong_input_gets_a_sentence(server, image, params, status, words):
    answer = requests.post(f"{server}/infer/sam2?image={image}", data={"params": json.dumps(params)}, timeout=60)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"] and "Traceback" not in answer.text


def test_unknown_models_get_a_sentence(server):
    answer = requests.post(f"{server}/infer/sam3?image=small", data={"params": "{}"}, timeout=60)
    assert answer.status_code == 404 and "sam3" in answer.json()["detail"]


def test_labels_are_saved_and_come_back(client, tmp_path):
    _, _, path = infer(client, foreground=[[20, 15, 3]], result_extension=".nii.gz")
    client.save_label("small", str(path), params={"label_info": [{"name": "spleen", "idx": 1}]})
    downloaded = read_volume(client.download_label("small", "final"))
    np.testing.assert_array_equal(downloaded.array, read_volume(path).array)


def test_next_sample_names_an_image(client):
    assert client.next_sample("first", {})["id"] in {"icbm152_t1", "small", "channels", "broken"}

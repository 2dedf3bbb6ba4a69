"""The command line, called as a user would call it."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_main(*arguments):
    """Run main.py in a process of its own, and return the finished process with its output."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The path of a small image with a bright ball in its centre."""
    x, y, z = np.meshgrid(np.arange(48), np.arange(40), np.arange(8), indexing="ij")
    ball = ((x - 24) / 10) ** 2 + ((y - 20) / 10) ** 2 + ((z - 4) / 3) ** 2 < 1
    path = tmp_path_factory.mktemp("data") / "ball.nii.gz"
    nib.save(nib.Nifti1Image((50 + 100 * ball).astype(np.int16), np.diag([2.0, 2.0, 5.0, 1.0])), path)
    return path


def test_segment_writes_mask_and_preview(image, tmp_path):
    out, preview = tmp_path / "mask.nrrd", tmp_path / "preview.png"
    done = run_main("segment", image, "--point", "24,20,4", "--negative", "2,2,4", "-o", out, "--preview", preview)
    assert done.returncode == 0, done.stderr
    from lib.imaging.readers import read_volume

    mask = read_volume(out)
    assert mask.shape == (48, 40, 8) and mask.array[24, 20, 4] == 1 and mask.array[2, 2, 4] == 0
    assert preview.read_bytes().startswith(b"\x89PNG")


def test_segment_takes_boxes_and_painted_slices(image, tmp_path):
    box = run_main("segment", image, "--box", "14,10,4,34,30,4", "-o", tmp_path / "box.nii.gz")
    assert box.returncode == 0, box.stderr
    painted = np.zeros((48, 40, 8), np.uint8)
    painted[14:35, 10:31, 4] = 1
    nib.save(nib.Nifti1Image(painted, nib.load(image).affine), tmp_path / "painted.nii.gz")
    done = run_main("segment", image, "--mask", tmp_path / "painted.nii.gz", "--absent", 0, "-o", tmp_path / "mask.nii.gz")
    assert done.returncode == 0, done.stderr
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask[:, :, 4], painted[:, :, 4])
    assert not mask[:, :, 0].any()


@pytest.mark.parametrize("arguments, words", [
    (["segment", "nowhere.nii.gz", "--point", "1,1,1", "-o", "x.nii.gz"], "no image"),
    (["segment", "IMAGE", "--point", "1,1", "-o", "x.nii.gz"], "3 are needed"),
    (["segment", "IMAGE", "-o", "x.nii.gz"], "click"),
    (["segment", "IMAGE", "--point", "1,1,1", "-o", "x.doc"], "endings"),
    (["download", "enormous"], "embedded"),
    (["serve", "--studies", "/nowhere"], "no folder"),
    (["evaluate", "--protocol", "x", "--data", "IMAGE", "--out", "x"], "protocol 'x'"),
    (["evaluate", "--protocol", "he", "--data", "/nowhere", "--out", "x"], "no folder"),
    (["evaluate", "--protocol", "he", "--data", "IMAGE", "--out", "x", "--method", "x"], "app, official, builtin"),
    (["batch", "--studies", "/nowhere", "--prompts", "/nowhere"], "no folder"),
])  # fmt: skip
def test_wrong_input_prints_one_sentence(image, arguments, words):
    done = run_main(*(str(image) if a == "IMAGE" else a for a in arguments))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_help_has_examples():
    for command in ("serve", "sample-data", "download", "segment", "train", "evaluate", "batch"):
        assert "examples:" in run_main(command, "--help").stdout


def test_download_lists_checkpoints():
    out = run_main("download", "--list").stdout
    assert "embedded" in out and "large" in out

"""The command line, called as a user would call it."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import main
from lib.imaging.readers import read_volume

ROOT = Path(__file__).resolve().parents[1]


def run_process(*arguments):
    """Run main.py in a process of its own, and return the finished process with its output."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run_main(*arguments) -> int:
    """Run a command in this process, which saves the time of its imports, and return the exit status."""
    try:
        return main.main([str(a) for a in arguments])
    except SystemExit as e:
        return e.code


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
    done = run_process("segment", image, "--point", "24,20,4", "--negative", "2,2,4", "-o", out, "--preview", preview)
    assert done.returncode == 0, done.stderr
    mask = read_volume(out)
    assert mask.shape == (48, 40, 8) and mask.array[24, 20, 4] == 1 and mask.array[2, 2, 4] == 0
    assert preview.read_bytes().startswith(b"\x89PNG")


def test_segment_takes_boxes_and_painted_slices(image, tmp_path):
    assert run_main("segment", image, "--box", "14,10,4,34,30,4", "-o", tmp_path / "box.nii.gz") == 0
    assert np.asarray(nib.load(tmp_path / "box.nii.gz").dataobj)[24, 20, 4] == 1
    painted = np.zeros((48, 40, 8), np.uint8)
    painted[14:35, 10:31, 4] = 1
    nib.save(nib.Nifti1Image(painted, nib.load(image).affine), tmp_path / "painted.nii.gz")
    assert run_main("segment", image, "--mask", tmp_path / "painted.nii.gz", "--absent", 0, "-o", tmp_path / "mask.nii.gz") == 0
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
def test_wrong_input_prints_one_sentence(image, arguments, words, capsys):
    assert run_main(*(image if a == "IMAGE" else a for a in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_scripts_learn_of_an_error_by_the_exit_status():
    done = run_process("download", "enormous")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "sample-data", "download", "segment", "train", "evaluate", "batch"])
def test_help_has_examples(command, capsys):
    assert run_main(command, "--help") == 0 and "examples:" in capsys.readouterr().out


def test_download_lists_checkpoints(capsys):
    assert run_main("download", "--list") == 0
    out = capsys.readouterr().out
    assert "embedded" in out and "large" in out


def test_folders_that_cannot_be_written_get_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_main("pack", tmp_path, "--out", tmp_path / "file" / "packed") == 2
    assert f"error: {tmp_path}/file/packed cannot be read or written: Not a directory." in capsys.readouterr().err

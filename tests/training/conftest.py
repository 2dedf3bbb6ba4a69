"""Volumes that the tests of the small networks' training share."""

import json

import nibabel as nib
import numpy as np
import pytest

from lib.training.volume_pack import is_held_back


@pytest.fixture(scope="session")
def labelled_volumes(tmp_path_factory):
    """A folder of two labelled volumes of patients, one of whom is held back."""
    folder = tmp_path_factory.mktemp("volumes")
    names = [next(f"mr_{n}" for n in range(100) if is_held_back(f"mr_{n}.nii.gz") == held_back) for held_back in (False, True)]
    rows, columns, layers = np.ogrid[:40, :40, :12]
    mask = (rows - 20) ** 2 + (columns - 22) ** 2 + (2 * (layers - 6)) ** 2 < 120
    for name in names:
        image = np.where(mask, 300, 100) + np.random.default_rng(0).integers(0, 20, mask.shape)
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}_label.nii.gz")
    rows = [{"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in names]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball"}, "training": rows}))
    return folder

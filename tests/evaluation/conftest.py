"""Provide a tiny labelled data set in the layout of the Decathlon."""

import json

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """Return the folder of three images of 48 x 40 x 8 voxels with a large ball (label 1) and a small one (label 2)."""
    folder = tmp_path_factory.mktemp("balls")
    x, y, z = np.meshgrid(np.arange(48), np.arange(40), np.arange(8), indexing="ij")
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    rows = []
    for n in range(3):
        labels = np.zeros(x.shape, np.uint8)
        for value, (cx, cy, radius) in ((1, (16 + n, 20, 9)), (2, (36, 24 - n, 6))):
            labels[((x - cx) / radius) ** 2 + ((y - cy) / radius) ** 2 + ((z - 4) / 3) ** 2 < 1] = value
        image = 50 + 100 * (labels == 1) + 160 * (labels == 2) + np.random.default_rng(n).normal(0, 3, x.shape)
        for kind, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", labels)):
            (folder / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / kind / f"ball_{n}.nii.gz")
        rows.append({"image": f"imagesTr/ball_{n}.nii.gz", "label": f"labelsTr/ball_{n}.nii.gz"})
    labels = {"0": "background", "1": "large", "2": "small"}
    (folder / "dataset.json").write_text(json.dumps({"name": "balls", "labels": labels, "training": rows}))
    return folder

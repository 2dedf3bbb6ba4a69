"""Helpers for tests with 3D Slicer's plugin: what the plugin does besides its client code, and volumes with a bright box."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.conftest import DIRECTIONS, ORIGIN_MM
from tests.serving.test_server import slicer_client

# Orientation, spacing in mm and file extension of each volume; it has ten slices along the axis with the largest spacing.
FILES = {
    "ras": ("RAS", (1.5, 2.0, 5.0), ".nii.gz"),
    "lps": ("LPS", (1.5, 2.0, 5.0), ".nrrd"),
    "flipped": ("LAI", (1.5, 2.0, 3.0), ".nii.gz"),
    "sagittal": ("LSA", (5.0, 1.5, 2.0), ".nrrd"),
    "oblique": ("oblique", (1.5, 2.0, 5.0), ".nii.gz"),
    "left_handed": ("oblique left-handed", (1.5, 2.0, 4.0), ".nrrd"),
}
# Corners of the box if the third axis has the ten slices. The box lies in the middle of no axis, so that a flip is noticed.
LOW, HIGH = np.array([8, 6, 2]), np.array([27, 23, 5])
CENTRE = [[17, 14, 3]]


def box_volume(slice_axis: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 voxels and the mask of the box, both (I, J, K) with ten slices along `slice_axis`."""
    noise = np.random.default_rng(0).normal(20, 4, (48, 40, 10))
    box = np.zeros(noise.shape, bool)
    box[tuple(slice(a, b + 1) for a, b in zip(LOW, HIGH, strict=True))] = True
    return np.moveaxis(noise + 160 * box, 2, slice_axis).astype(np.int16), np.moveaxis(box, 2, slice_axis)


BOX = box_volume()[1]


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an array (I, J, K) with its matrix from voxels to RAS in mm."""
    if path.name.endswith(".nii.gz"):
        return nib.save(nib.Nifti1Image(array, affine), path)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))


def write_images(folder: Path) -> None:
    """Write the volumes of FILES, and some images that are not grey-scale volumes."""
    for name, (direction, spacing, ending) in FILES.items():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = DIRECTIONS[direction] * spacing, ORIGIN_MM
        write_image(folder / (name + ending), box_volume(int(np.argmax(spacing)))[0], affine)
    array, affine = box_volume()[0], np.diag([1.5, 2.0, 5.0, 1.0])
    colours = np.zeros(array.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for n in "RGB":
        colours[n] = np.clip(array, 0, 255)
    holes = array.astype(np.float32)
    holes[:4] = np.nan
    unusual = {
        "slice": array[:, :, 4:5], "planar": array[:, :, 4], "colours": colours, "holes": holes, "nothing": np.full_like(holes, np.nan),
        "series": np.stack([array] * 3, 3), "one_of_one": array[..., None], "other": array + 10,
    }  # fmt: skip
    for name, voxel_array in unusual.items():
        nib.save(nib.Nifti1Image(voxel_array, affine), folder / f"{name}.nii.gz")
    rgb = sitk.GetImageFromArray(np.repeat(np.clip(array, 0, 255).astype(np.uint8).transpose(2, 1, 0)[..., None], 3, -1), isVector=True)
    rgb.SetSpacing((1.5, 2.0, 5.0))
    sitk.WriteImage(rgb, str(folder / "colours_nrrd.nrrd"))


class SlicerUser:
    """A user of 3D Slicer, who sends requests as the plugin's main file does and reads answers with SimpleITK."""

    def __init__(self, server, folder, name):
        self.client = slicer_client()(server, tmpdir=str(folder), client_id=name)
        self.models = self.client.info()["models"]

    def ask(self, image="ras", foreground=CENTRE, *, model="sam2", label="box", session=None, roi=None, upload=None, **fields):
        """Ask for a mask and return its file, its voxels, bool (I, J, K), and the JSON answer."""
        config = {k: v[0] if isinstance(v, list) else v for k, v in self.models[model]["config"].items()}
        params = {"foreground": foreground, "background": [], **config, **({"roi": roi} if roi else {})}
        params["selected_label_name" if model == "sam2_scribbles" else "label"] = label
        if self.models[model]["dimension"] == 2:
            params["slice"] = foreground[-1][2] if foreground else None
        params |= {"result_extension": ".nrrd", "result_dtype": "uint8", **fields}
        file, answer = self.client.infer(model, image, params, label_in=upload, session_id=session)
        return Path(file), voxels(file), answer


def voxels(file) -> np.ndarray:
    """Return the voxels of a mask file, bool (I, J, K)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).transpose(2, 1, 0) > 0


def voxel_to_lps(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return ITK's transform from voxels to LPS in mm: the matrix (3, 3) and the origin (3,)."""
    return np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), np.array(image.GetOrigin())


def dice(a, b) -> float:
    """Return the Dice overlap of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def refused(words, status="4.."):
    """Expect that the client raises an error with a status and a sentence that holds `words`, without a traceback."""
    return pytest.raises(Exception, match=rf'(?is)^(?!.*Traceback).*Status: {status}; Response: {{"detail":"[^"]*{words}')

"""The cases of real files: where each one's bright ball lies, which answer is wanted, and what an answer is worth."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

MAX_OFFSET = 0.3  # of the ball's radius: the mask of a rightly clicked ball is closer.
VOLUME_RATIO = (0.6, 1.5)  # Volume of a rightly clicked ball's mask, as a share of the ball's.
NO_REASON = "not understood|see its log|no such image"  # Answers that do not say what is wrong with the file.
BALL = "ball"  # Name of the structure in requests and labels.

# What must be refused, with a pattern that the reason must match. All other cases must be right or, in `MAY_REFUSE`, refused.
_UNEVEN = "evenly|missing|gap|distance"
REFUSED = {
    "dcm_missing": _UNEVEN, "dcm_missing_six": _UNEVEN, "dcm_mf_gap": _UNEVEN, "dcm_variable": _UNEVEN,
    "dcm_duplicate": "twice|duplicate|same place|same position|evenly",
    "dcm_localizer": "orient|direction|parallel|localizer|plane|several|volumes", "dcm_size_differs": "size|rows|columns|matrix|volumes",
    "dcm_pixel_spacing_differs": "spacing|pixel|volumes", "dcm_one_without_ipp": "position|ImagePositionPatient",
    "lab_cropped": "shape", "lab_scaled": "scale|scl_slope|whole",
}  # fmt: skip
# Several volumes in one series, files that do not say where their slices lie, and layers without a word on what they are.
MAY_REFUSE = {
    "dcm_mf_echoes", "dcm_phases", "dcm_mf_phases", "dcm_mf_orientations", "dcm_no_position", "dcm_empty_ipp", "dcm_zero_iop",
    "dcm_ct_multiframe_plain", "lab_layers", "lab_layers_plain",
}  # fmt: skip
_MUST_BE_RIGHT = """
    plain nocodes disagree21 disagree11 disagree12 micron sheared nan_inter nan_slope zero_dims3 quaternion zero_dims not_gzip rgb complex
    vector5d int64 uint64 float64 nifti2 big_endian pair pair_img nan_background one_slice coronal_slice cine2d one_timepoint em micro
    anisotropic many outlier zero_one dbl_max pad2000 pad3024 pad32768
    nrrd_lps nrrd_ras nrrd_las nrrd_spacings nrrd_sheared nhdr nrrd_vector_first nrrd_list_last nrrd_crlf mhd_space mha_negative mha_size
    mhd_one_channel mha_uint64 mha_upper nrrd_upper
    dcm_no_preamble dcm_no_preamble_explicit dcm_signed_offset dcm_tilt dcm_mf_tilt dcm_mf_ascending dcm_mf_descending dcm_mf_no_spacing
    dcm_descending dcm_sagittal dcm_subfolders dcm_pet dcm_implicit dcm_deflated dcm_big_endian_dcm dcm_rle dcm_jpeg2000 dcm_jpeg_lossless
    dcm_jpeg_ls
"""
MUST_BE_RIGHT = frozenset(_MUST_BE_RIGHT.split())
# Frame 24 of these interleaved echoes lies where slice 12 lies, so the ball is not where a plain stack of the frames has it.
CENTRES_LPS_MM = {"dcm_mf_echoes": (11.0, 49.4, -22.0)}


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        kind: "right", "refused" (with a sentence), "wrong", "crash" (status 500, traceback, no answer in time), or "not asked".
        text: The distance, the reason, or what happened.
    """

    kind: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.text})" if self.kind in ("right", "not asked") else f"{self.kind}: {self.text}".removesuffix(": ")


@dataclass(frozen=True)
class Case:
    """An image with a bright ball, and perhaps a label map of the ball.

    Attributes:
        name: Name of the case.
        image: File or folder.
        click_ijk: Voxel in the ball, in the index order of the format.
        centre_lps_mm: Centre of the ball as the format defines positions, in mm LPS.
        radius_mm: Radius of the ball.
        affine: (4, 4), from voxels to mm LPS.
        mask: Label map, or None.
        arguments: Options for the command line.
        is_flat: Whether the image is one slice, so that the mask has no volume to compare.
        is_empty: Whether the image has no ball.
    """

    name: str
    image: Path
    click_ijk: tuple[int, ...]
    centre_lps_mm: np.ndarray
    radius_mm: float
    affine: np.ndarray
    mask: Path | None = None
    arguments: tuple[str, ...] = ()
    is_flat: bool = False
    is_empty: bool = False

    @cached_property
    def is_dicom(self) -> bool:
        return self.image.is_dir() or self.image.suffix.lower() == ".dcm"

    @cached_property
    def is_sheared(self) -> bool:
        """Whether the axes of the voxels are not perpendicular to each other."""
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)

    @property
    def needs_channel(self) -> bool:
        return "--channel" in self.arguments

    def files(self) -> list[Path]:
        """Return the files of the image: one, those of a folder, or all of its folder if the header and the voxels are two files."""
        if self.image.is_dir():
            return sorted(p for p in self.image.rglob("*") if p.is_file())
        if self.image.suffix.lower() in (".hdr", ".img", ".nhdr", ".mhd"):
            return sorted(p for p in self.image.parent.iterdir() if p.is_file() and p != self.mask)
        return [self.image]


def read_cases(folder: Path, names=()) -> list[Case]:
    """Return the cases that `folder`/truth.json lists, or those of the given names in this order.

    Raises:
        SystemExit: A name is unknown.
    """
    listed = json.loads((folder / "truth.json").read_text())
    if unknown := set(names) - set(listed):
        raise SystemExit(f"{folder / 'truth.json'} does not list {', '.join(sorted(unknown))}.")

    def found(text: str) -> Path:
        """Return a path as it stands, or below `folder` if the cases were moved there."""
        path = Path(text)
        return path if path.exists() or "in" not in path.parts else folder.joinpath(*path.parts[path.parts.index("in") :])

    return [
        Case(
            name, found(t["image"]), tuple(t["click"]), np.array(CENTRES_LPS_MM.get(name, t["centre"]), float), t["r"],
            np.array(t["a"], float), found(t["mask"]) if t.get("mask") else None, tuple(t.get("args", ())), bool(t.get("flat")),
            bool(t.get("nothing")),
        )
        for name, t in ((n, listed[n]) for n in names or listed)
    ]  # fmt: skip


_RUN_GENERATOR = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
for name, make in module.CASES.items():
    try:
        make(name)
    except Exception as e:
        print(f"{name} was not made: {e}", file=sys.stderr)
"""


def generate(generators: Path, folder: Path) -> None:
    """Copy the generators (make_*.py and what they import) to `folder` and run them there."""
    for script in generators.glob("*.py"):
        shutil.copy(script, folder)
    for script in sorted(folder.glob("make_*.py")):
        done = subprocess.run([sys.executable, "-c", _RUN_GENERATOR, script.stem], cwd=folder, stderr=subprocess.PIPE, text=True)
        sys.stderr.write("\n".join(line for line in done.stderr.splitlines() if "was not made" in line or done.returncode) + "\n")


@dataclass(frozen=True)
class Grid:
    """A file's voxels as a client reads them.

    Attributes:
        array: (I, J, K) or (I, J, K, ...).
        affine: (4, 4), from voxels to mm LPS.
        reader: "ITK", or "nibabel" where ITK refuses the file.
    """

    array: np.ndarray = field(repr=False)
    affine: np.ndarray
    reader: str = "ITK"


def read_as_client(path: Path) -> Grid:
    """Return an image as SimpleITK, and so 3D Slicer, reads it; by nibabel where ITK refuses a NIfTI file.

    Raises:
        RuntimeError: Neither can read it.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise
        image = nib.load(path)
        return Grid(np.asarray(image.dataobj), np.diag([-1, -1, 1, 1]) @ image.affine, "nibabel")
    array = sitk.GetArrayFromImage(image)
    axes = tuple(reversed(range(image.GetDimension())))
    array = array.transpose((*axes, len(axes)) if array.ndim > len(axes) else axes)
    affine, n = np.eye(4), min(3, image.GetDimension())
    affine[:n, :n] = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:n, :n] * image.GetSpacing()[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return Grid(array if array.ndim > 2 else array[:, :, None], affine)


def holds_ball(case: Case, grid: Grid) -> bool:
    """Return whether a grid holds most of a case's ball, so that a mask of all of it can be expected."""
    ijk = np.argwhere(np.ones(grid.array.shape[:3], bool))
    points = ijk @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = np.linalg.norm(points - case.centre_lps_mm, axis=1) <= case.radius_mm
    return inside.sum() * abs(np.linalg.det(grid.affine[:3, :3])) > 0.8 * _ball_mm3(case)


def _ball_mm3(case: Case) -> float:
    return 4 / 3 * np.pi * case.radius_mm**3


def judge(case: Case, centroid_lps_mm, volume_mm3: float) -> Verdict:
    """Compare a mask's centroid and volume with the ball."""
    if case.is_empty:
        return Verdict("right", "there is no ball")
    offset = float(np.linalg.norm(np.asarray(centroid_lps_mm) - case.centre_lps_mm))
    text = f"{offset:.2g} mm off"
    if not case.is_flat:
        ratio = volume_mm3 / _ball_mm3(case)
        text += f", {ratio:.2f} of the ball"
        if not VOLUME_RATIO[0] < ratio < VOLUME_RATIO[1]:
            return Verdict("wrong", text)
    return Verdict("right" if offset < MAX_OFFSET * case.radius_mm else "wrong", text)


def judge_mask(case: Case, path: Path, *, value: int | None = None) -> Verdict:
    """Judge a file with the mask of the ball as its non-zero voxels, or as those of one value."""
    try:
        grid = read_as_client(path)
    except Exception as e:
        return Verdict("wrong", f"the client cannot read the mask {path.name}: {_last_line(e)}")
    array = grid.array[:, :, :, 0] if grid.array.ndim > 3 else grid.array
    voxels = np.argwhere(np.rint(array) == value if value else array > 0)
    if case.is_empty:
        return judge(case, None, 0)
    if not len(voxels):
        return Verdict("wrong", "the mask is empty")
    centroid = grid.affine[:3, :3] @ voxels.mean(0) + grid.affine[:3, 3]
    verdict = judge(case, centroid, len(voxels) * abs(np.linalg.det(grid.affine[:3, :3])))
    return verdict if grid.reader == "ITK" else Verdict(verdict.kind, f"{verdict.text}, by {grid.reader}")


def refusal(text: str) -> Verdict:
    """Return the verdict for an error message that the user gets: refused if it is a sentence, else wrong."""
    text = " ".join(text.split())
    if "Traceback" in text:
        return Verdict("crash", text[-200:])
    is_sentence = len(text.split()) > 3 and text.endswith((".", "?", ")")) and not re.search(NO_REASON, text, re.I)
    return Verdict("refused", text) if is_sentence else Verdict("wrong", f"refused without a reason: {text}")


def worst(verdicts: list[Verdict]) -> Verdict:
    """Return the worst verdict, or the last right one."""
    for kind in ("crash", "wrong", "refused"):
        for verdict in verdicts:
            if verdict.kind == kind:
                return verdict
    return verdicts[-1]


def complaint(case: Case, verdict: Verdict) -> str:
    """Return why a verdict is not the wanted one, or "" if it is."""
    if verdict.kind in ("wrong", "crash"):
        return str(verdict)
    if verdict.kind == "not asked":
        return ""
    if case.name in REFUSED:
        if verdict.kind != "refused":
            return f"must be refused, but is {verdict}"
        if not re.search(REFUSED[case.name], verdict.text, re.I):
            return f"must be refused with a reason that matches {REFUSED[case.name]!r}, but is {verdict}"
    if case.name in MUST_BE_RIGHT and verdict.kind != "right" and not (case.needs_channel and "channel" in verdict.text):
        return f"must be right, but is {verdict}"
    return ""


def _last_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[-1]

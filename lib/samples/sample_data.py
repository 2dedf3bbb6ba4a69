"""Fill the sample-data folder from the installed packages alone: nothing is downloaded, and no patient's image is used."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from nilearn import datasets
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from lib.common.atomic_files import replaced_file
from lib.imaging.geometry import itk_from_ras
from lib.imaging.volume import Volume
from lib.samples import phantom

logger = logging.getLogger(__name__)

BRAIN_LABELS = {"grey_matter": 1, "white_matter": 2, "cerebrospinal_fluid": 3}


def make_samples(folder: Path) -> None:
    """Write the samples to `folder` in the layout of the Medical Segmentation Decathlon; samples that already exist are skipped.

    Images go to nifti/ and dicom/, label maps to reference/; dataset.json lists them.
    """
    cases = {"icbm152_t1": (icbm152, BRAIN_LABELS, "MR"), "ct_phantom": (phantom.abdomen, phantom.LABELS, "CT")}
    entries = []
    for name, (generate, labels, modality) in cases.items():
        image, label = folder / "nifti" / f"{name}.nii.gz", folder / "reference" / f"{name}.nii.gz"
        series = folder / "dicom" / name
        names = {str(value): structure for structure, value in labels.items()}
        entries.append({"image": f"./nifti/{image.name}", "label": f"./reference/{label.name}", "labels": names})
        if image.exists() and label.exists() and (series / "complete").exists():
            continue
        logger.info("Making sample %s.", name)
        volume, reference = generate()
        _save_nifti(volume.array, volume.affine, image)
        _save_nifti(reference, volume.affine, label)
        write_dicom(volume, series, modality=modality, description=name)
        (series / "complete").touch()
    (folder / "dataset.json").write_text(json.dumps({"name": "samples", "training": entries}, indent=1))


def icbm152() -> tuple[Volume, np.ndarray]:
    """Return the ICBM 152 T1 template (1 mm) of nilearn, and labels made from its tissue maps, uint8 (I, J, K), see `BRAIN_LABELS`."""
    t1 = datasets.load_mni152_template(resolution=1)
    grey, white, brain = (
        np.asarray(load(resolution=1).dataobj, np.float32)
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    )
    labels = np.where(brain > 0, 3, 0)
    labels[(brain > 0) & (grey > 0.3) & (grey >= white)] = 1
    labels[(brain > 0) & (white > 0.3) & (white > grey)] = 2
    array = np.asarray(t1.dataobj, np.float32)
    scaled = np.rint(array / array.max() * 1000).astype(np.int16)
    return Volume(scaled, t1.affine, "icbm152_t1"), labels.astype(np.uint8)


def write_dicom(volume: Volume, folder: Path, *, modality: str, description: str) -> None:
    """Write a volume as one DICOM series with a slice per index k.

    Args:
        modality: "CT" for intensities in HU, or "MR".
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin, spacing_mm, direction = itk_from_ras(volume.affine)
    matrix = direction.reshape(3, 3)
    study, series, frame = (generate_uid(entropy_srcs=[description, level]) for level in ("study", "series", "frame"))
    offset = 1024 if modality == "CT" else 0
    for k in range(volume.shape[2]):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[description, str(k)])
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PatientName, ds.PatientID = f"Sample^{description}", f"SAMPLE-{description}"
        ds.PatientBirthDate, ds.PatientSex, ds.AccessionNumber, ds.ReferringPhysicianName = "", "O", "", ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, k + 1
        ds.StudyDate = ds.SeriesDate = "20260101"
        ds.StudyTime = ds.SeriesTime = "120000"
        ds.StudyDescription = ds.SeriesDescription = description
        ds.Modality, ds.Manufacturer, ds.PositionReferenceIndicator = modality, "generated", ""
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        ds.ImagePositionPatient = [f"{v:.6f}" for v in origin + matrix[:, 2] * spacing_mm[2] * k]
        ds.ImageOrientationPatient = [f"{v:.6f}" for v in (*matrix[:, 0], *matrix[:, 1])]
        ds.PixelSpacing = [f"{spacing_mm[1]:.6f}", f"{spacing_mm[0]:.6f}"]
        ds.SliceThickness = ds.SpacingBetweenSlices = f"{spacing_mm[2]:.6f}"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleIntercept, ds.RescaleSlope = str(-offset), "1"
        ds.WindowCenter, ds.WindowWidth = ("40", "400") if modality == "CT" else ("450", "900")
        pixels = np.clip(volume.array[:, :, k].T.astype(np.int32) + offset, 0, 65535).astype("<u2")
        ds.Rows, ds.Columns = pixels.shape
        ds.PixelData = pixels.tobytes()
        ds.is_little_endian, ds.is_implicit_VR = True, False
        ds.save_as(folder / f"{k + 1:04d}.dcm", write_like_original=False)


def _save_nifti(array, affine, path: Path) -> None:
    """Write a NIfTI file atomically and create its folder if needed."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with replaced_file(path, ".nii.gz") as temporary:
        nib.save(image, temporary)

"""Small DICOM series for tests: oblique, with a tilted gantry, as single frames and as an enhanced object with shuffled frames."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (12, 10, 6)
SPACING_MM = (0.7, 0.9, 2.5)
ORIGIN_MM = np.array([-31.0, 17.25, -52.5])  # LPS
OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8], [0.48, -0.64, 0.6]])  # Rows: directions of columns, rows and slices.
SHUFFLED = [3, 0, 5, 1, 4, 2]


def positions_mm(tilt_mm: float) -> np.ndarray:
    """Return the positions (K, 3) of slices that are shifted along their rows by `tilt_mm` from one to the next, as by a tilted gantry."""
    return ORIGIN_MM + np.arange(SHAPE[2])[:, None] * (OBLIQUE[2] * SPACING_MM[2] + OBLIQUE[1] * tilt_mm)


def header(**attributes) -> Dataset:
    """Return a header that lacks much of what DICOM demands, as many files do."""
    ds = Dataset()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.3.1", "1.2.3.2", generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = SHAPE[1], SHAPE[0], 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def save(ds: Dataset, path: Path) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.is_little_endian, ds.is_implicit_VR = True, False
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, write_like_original=False)


def write_single_frames(folder: Path, tilt_mm: float = 0.0, **attributes) -> None:
    """Write a series of single-frame CT images whose file names do not follow their order; slice k has the intensity 10 k."""
    for k, position in enumerate(positions_mm(tilt_mm)):
        ds = header(SOPClassUID=CTImageStorage, Modality="CT", InstanceNumber=SHUFFLED[k] + 1, **attributes)
        ds.ImagePositionPatient, ds.ImageOrientationPatient = np.round(position, 6).tolist(), OBLIQUE[:2].ravel().tolist()
        ds.PixelSpacing, ds.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        ds.PixelData = np.full(SHAPE[:2], 10 * k, np.uint16).tobytes()
        save(ds, folder / f"{SHUFFLED[k]}.dcm")


def write_multi_frame(folder: Path, tilt_mm: float = 0.0, **attributes) -> None:
    """Write one enhanced MR object of two echoes with shuffled frames; slice k has the intensity 10 k, or 10 k + 1 in the second echo."""
    ds = header(SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=2 * SHAPE[2], InstanceNumber=1, **attributes)
    shared, ds.PerFrameFunctionalGroupsSequence = Dataset(), []
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
    ds.SharedFunctionalGroupsSequence = [shared]
    for k in SHUFFLED:
        for echo_ms in (10.0, 20.0):
            frame = Dataset()
            for sequence, keyword, value in (
                ("PlanePositionSequence", "ImagePositionPatient", np.round(positions_mm(tilt_mm)[k], 6).tolist()),
                ("PlaneOrientationSequence", "ImageOrientationPatient", OBLIQUE[:2].ravel().tolist()),
                ("MREchoSequence", "EffectiveEchoTime", echo_ms),
            ):
                item = Dataset()
                setattr(item, keyword, value)
                setattr(frame, sequence, [item])
            ds.PerFrameFunctionalGroupsSequence.append(frame)
    values = np.uint16([10 * k + echo for k in SHUFFLED for echo in (0, 1)])
    ds.PixelData = np.repeat(values, SHAPE[0] * SHAPE[1]).tobytes()
    save(ds, folder / "enhanced.dcm")


WRITERS = {"single frames": write_single_frames, "multi-frame": write_multi_frame}

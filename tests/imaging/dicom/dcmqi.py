"""DICOM SEG as dcmqi writes it, by which the reader is tried on files of others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAM = shutil.which("itkimage2segimage") or shutil.which("itkimage2segimage", path=Path(sys.executable).parent)


def write_segmentation(folder: Path, series: str) -> Path:
    """Write folder/seg.dcm from the label map folder/labels.nrrd, in which 2 is a liver and 5 a cyst, and return its path.

    Args:
        series: Path of the folder of the source's DICOM files, relative to `folder`.
    """
    code = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segments = [
        {"labelID": v, "SegmentLabel": n, "SegmentAlgorithmType": "MANUAL", "SegmentedPropertyCategoryCodeSequence": code,
         "SegmentedPropertyTypeCodeSequence": code} for v, n in ((2, "liver"), (5, "cyst"))
    ]  # fmt: skip
    (folder / "meta.json").write_text(json.dumps({"segmentAttributes": [segments], "ContentCreatorName": "Reader"}))
    subprocess.run(
        [PROGRAM, "--inputImageList", "labels.nrrd", "--inputDICOMDirectory", series, "--outputDICOM", "seg.dcm", "--inputMetadata", "meta.json"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "seg.dcm"

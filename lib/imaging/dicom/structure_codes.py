"""Structures as DICOM names them: their names as text, and codes of SNOMED CT for those that are known; others are called "tissue"."""

import re

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

# Keywords of pydicom's dictionary by the words of a name.
_ANATOMY = {
    "aorta": "Aorta", "adrenal gland": "AdrenalGland", "bone": "Bone", "brain": "Brain", "colon": "Colon", "duodenum": "Duodenum",
    "esophagus": "Esophagus", "femur": "Femur", "gallbladder": "Gallbladder", "heart": "Heart", "inferior vena cava": "InferiorVenaCava",
    "kidney": "Kidney", "liver": "Liver", "lung": "Lung", "lymph node": "LymphNode", "muscle": "Muscle", "pancreas": "Pancreas",
    "portal vein": "PortalVein", "prostate": "Prostate", "rectum": "Rectum", "rib": "Rib", "small intestine": "SmallIntestine",
    "spinal cord": "SpinalCord", "spleen": "Spleen", "stomach": "Stomach", "trachea": "Trachea", "urinary bladder": "Bladder",
    "bladder": "Bladder", "uterus": "Uterus", "vertebra": "Vertebra",
}  # fmt: skip
_FINDINGS = {
    "abscess": "Abscess", "cyst": "Cyst", "edema": "Edema", "hemorrhage": "Hemorrhage", "lesion": "Lesion", "nodule": "Nodule",
    "tumor": "Neoplasm", "tumour": "Neoplasm",
}  # fmt: skip
_SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}
ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
LONG_STRING_LENGTH = 64  # characters in a DICOM value of the type LO
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Altered Structure")


def codes_of(name: str) -> tuple[Code, Code, Code | None]:
    """Return the codes of a structure's category and type, and of its side if the name says that.

    >>> [code and code.meaning for code in codes_of("kidney_left")]
    ['Anatomical Structure', 'Kidney', 'Left']
    >>> [code and code.meaning for code in codes_of("Tumor")], [code and code.meaning for code in codes_of("Leber")]
    (['Morphologically Altered Structure', 'Neoplasm', None], ['Tissue', 'Tissue', None])
    """
    words = re.split(r"[\W_]+", name.casefold())
    side = next((_SIDES[word] for word in words if word in _SIDES), None)
    text = " ".join(word for word in words if word and word not in _SIDES)
    if text in _ANATOMY:
        return ANATOMICAL_STRUCTURE, getattr(codes.SCT, _ANATOMY[text]), side
    if text in _FINDINGS:
        return ABNORMAL_STRUCTURE, getattr(codes.SCT, _FINDINGS[text]), None
    return codes.SCT.Tissue, codes.SCT.Tissue, None


def long_string(text: str) -> str:
    """Return a text as a DICOM value of the type LO can hold it: one line without backslashes and of limited length."""
    printable = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(printable.split())[:LONG_STRING_LENGTH].strip() or "segment"

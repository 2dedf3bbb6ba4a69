"""Results that the papers print, for comparison with measured ones. None means that the paper gives no value."""

from dataclasses import dataclass

# He et al. 2024, Table 1: the methods with which SAM 2 is compared there.
HE_COLUMNS = ("Auto3DSeg", "nnU-Net", "TotalSegmentator", "VISTA3D auto", "VISTA3D point", "VISTA3D auto + point")


@dataclass(frozen=True)
class HeRow:
    """The Dice of one structure in Table 1 of He et al. 2024.

    Attributes:
        labels: Names that the structure may have in the data.
        other_methods: Dice of the methods in HE_COLUMNS.
        background_removed, full: Dice of SAM 2 on the slices with foreground only, and on the whole volume.
    """

    dataset: str
    labels: tuple[str, ...]
    other_methods: tuple[float | None, ...]
    background_removed: float | None
    full: float | None


HE_ROWS = tuple(
    HeRow(dataset, tuple(labels.split("|")), other_methods, background_removed, full)
    for dataset, labels, other_methods, background_removed, full in (
        ("MSD03", "liver", (0.943, 0.947, 0.942, 0.959, 0.874, 0.961), 0.454, 0.373),
        ("MSD03", "hepatic tumor|cancer|tumour|tumor", (0.616, 0.617, None, 0.588, 0.701, 0.687), 0.116, 0.111),
        ("MSD06", "lung tumor|cancer|tumour|tumor", (0.562, 0.554, None, 0.614, 0.682, 0.719), 0.812, 0.657),
        ("MSD07", "pancreas", (0.785, 0.789, 0.775, 0.819, 0.802, 0.840), 0.295, 0.245),
        ("MSD07", "pancreatic tumor|cancer|tumour|tumor", (0.485, 0.488, None, 0.324, 0.603, 0.638), 0.498, 0.229),
        ("MSD08", "hepatic vessel|vessel", (0.627, 0.584, None, 0.553, 0.582, 0.670), 0.086, 0.079),
        ("MSD08", "hepatic tumor|tumour|tumor|cancer", (0.683, 0.659, None, 0.682, 0.733, 0.757), 0.322, 0.265),
        ("MSD09", "spleen", (0.965, 0.967, 0.935, 0.952, 0.938, 0.954), 0.898, 0.737),
        ("BTCV", "spleen", (0.954, 0.962, 0.951, 0.944, 0.950, 0.955), 0.475, 0.308),
        ("BTCV", "right kidney", (0.936, 0.951, 0.941, 0.943, 0.937, 0.945), 0.926, 0.897),
        ("BTCV", "left kidney", (0.942, 0.932, 0.944, 0.942, 0.938, 0.946), 0.925, 0.786),
        ("BTCV", "gallbladder", (0.663, 0.771, 0.739, 0.794, 0.792, 0.807), 0.762, 0.578),
        ("BTCV", "esophagus", (0.740, 0.740, 0.793, 0.779, 0.799, 0.821), 0.810, 0.495),
        ("BTCV", "liver", (0.964, 0.961, 0.970, 0.967, 0.715, 0.969), 0.670, 0.603),
        ("BTCV", "stomach", (0.876, 0.797, 0.946, 0.944, 0.938, 0.946), 0.557, 0.40),
        ("BTCV", "aorta", (0.929, 0.909, 0.929, 0.931, 0.925, 0.932), 0.916, 0.85),
        ("BTCV", "inferior vena cava", (0.834, 0.827, 0.854, 0.842, 0.729, 0.856), 0.466, 0.413),
        ("BTCV", "portal vein and splenic vein", (0.649, 0.752, 0.781, 0.775, 0.734, 0.780), 0.448, 0.305),
        ("BTCV", "pancreas", (0.759, 0.820, 0.807, 0.841, 0.797, 0.853), 0.349, 0.27),
        ("BTCV", "right adrenal gland", (0.604, 0.661, 0.696, 0.692, 0.673, 0.699), 0.282, 0.186),
        ("BTCV", "left adrenal gland", (0.638, 0.642, 0.643, 0.646, 0.666, 0.660), 0.455, 0.298),
        ("AbdomenCT-1K", "liver", (0.978, 0.982, 0.969, 0.974, 0.896, 0.976), 0.485, 0.434),
        ("AbdomenCT-1K", "kidney", (0.947, 0.944, 0.912, None, None, None), None, None),
        ("AbdomenCT-1K", "spleen", (0.967, 0.976, 0.968, 0.966, 0.959, 0.964), 0.878, 0.81),
        ("AbdomenCT-1K", "pancreas", (0.857, 0.860, 0.828, 0.865, 0.853, 0.881), 0.392, 0.32),
    )
)  # fmt: skip

SHEN_DATASETS = ("BraTS2020", "MSD09", "MSD03", "MSD06", "MSD07")
SHEN_NAMES = {"BraTS2020": "BraTS", "MSD09": "spleen", "MSD03": "liver", "MSD06": "lung", "MSD07": "pancreas"}

# Shen et al. 2024, Table 1: Dice in percent of interactive methods on SHEN_DATASETS.
SHEN_INTERACTIVE = {
    "DeepIGeoS": (88.54, 91.97, 48.57, None, None),
    "InterCNN": (88.39, 93.52, 59.92, None, None),
    "IteR-MRL": (89.22, 91.50, 62.29, None, None),
    "MECCA": (91.02, 94.96, 71.46, None, None),
}

# Tables 1 and 2: (Dice, NSD) in percent of SAM 2 by setting, on SHEN_DATASETS; Table 1 gives no NSD for BraTS.
SHEN = {
    "5 clicks": ((75.52, None), (79.59, 75.63), (81.32, 50.47), (71.61, 68.99), (44.73, 34.01)),
    "1 mask": ((81.29, None), (82.77, 79.35), (90.18, 61.29), (77.38, 74.97), (51.48, 40.75)),
    "5 clicks, salient": ((81.12, None), (92.98, 89.71), (84.85, 52.69), (83.93, 78.68), (51.45, 40.82)),
    "1 mask, salient": ((87.17, None), (94.41, 92.46), (92.33, 63.13), (87.48, 82.39), (61.04, 50.65)),
}

# Table 2: (Dice, NSD) in percent of supervised methods, on SHEN_DATASETS.
SHEN_SUPERVISED = {
    "nnU-Net": ((None, None), (97.43, 99.89), (95.75, 98.55), (73.97, 76.02), (81.64, 96.14)),
    "DiNTS": ((None, None), (96.98, 99.83), (95.35, 98.69), (74.75, 77.53), (81.02, 96.26)),
    "Swin UNETR": ((None, None), (96.99, 99.84), (95.35, 98.34), (76.60, 77.40), (81.85, 96.57)),
    "Universal Model": ((None, None), (97.27, 99.87), (95.42, 98.18), (80.01, 81.25), (82.84, 96.65)),
}

# Dong et al. 2024: mean 3D IoU over all data sets; the paper shows single settings only in plots.
DONG = {
    "mean of the 24 settings (first version)": 0.19,
    "one point, best setting (journal version)": 0.32,
    "reference mask, best setting (journal version)": 0.51,
}

# Challenge "Foundation Models for Interactive 3D Biomedical Image Segmentation" of CVPR 2025: DSC_AUC, NSD_AUC, DSC_Final and NSD_Final
# on its hidden test set, which are other data than one can measure on (Ndir et al., arXiv 2510.03189, and ENSAM).
CVPR25 = {
    "nnInteractive, fine-tuned": (2.480, 2.567, 0.639, 0.661),
    "ENSAM, from scratch": (2.404, 2.266, 0.627, 0.597),
}

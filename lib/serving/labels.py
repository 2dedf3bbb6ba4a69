"""Names of the structures that an annotator can choose."""

DEFAULT_LABELS = (
    "lesion", "tumor", "liver", "spleen", "kidney_left", "kidney_right", "pancreas", "gallbladder", "stomach",
    "urinary_bladder", "prostate", "aorta", "inferior_vena_cava", "heart", "lung_left", "lung_right", "brain",
    "vertebra", "bone", "muscle", "other",
)  # fmt: skip


def parse_labels(text: str | None) -> list[str]:
    """Names from `--conf labels "spleen,liver"`, else the default list.

    >>> parse_labels("spleen, liver,spleen")
    ['spleen', 'liver']
    """
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    return list(dict.fromkeys(names)) or list(DEFAULT_LABELS)
